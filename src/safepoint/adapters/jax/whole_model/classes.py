"""The class form of a model: what it is made of, written down, checked, and built again around the file's arrays.

    {"model": value}                                          Equinox, see `values`
    {"model": value, "variables": value}                      Linen: the module, and what it is bound to
    {"function": name, "params": value}                       a function with a name
    {"class": name, "arguments": [[name, value], ...], "set": [[path, name, value], ...]}     Flax NNX

Invariant: every name was resolved before anything is built; what is written down was built again, and compared.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import jax

from safepoint.adapters.constructed import arguments_of
from safepoint.adapters.jax import leaves, nnx, placing
from safepoint.adapters.jax.whole_model import values
from safepoint.adapters.jax.whole_model.names import Names
from safepoint.adapters.jax.whole_model.styles import Style
from safepoint.adapters.protocol import Scope
from safepoint.errors import CorruptionError, MismatchError, SafepointError, UnsupportedError
from safepoint.tree import StateTree, Tensor, is_value, match

_LIBRARY = {"equinox": "equinox", "linen": "flax.linen", "nnx": "flax.nnx"}
_MAX_DEPTH = 400
_MAX_VALUES = 1_000_000


@final
class Function:
    """A function of parameters, with them: `model(x)` is `model.function(model.params, x)`."""

    def __init__(self, function: Callable[..., Any], params: Any) -> None:
        self.function = function
        self.params = params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.params, *args, **kwargs)

    def __repr__(self) -> str:
        return f"{getattr(self.function, '__name__', 'Function')}(params, ...)"


def describe(model: Any, style: Style, tree: StateTree, init: Mapping[str, Any] | None) -> dict[str, Any]:
    """The class form of a live model.

    Raises:
        UnsupportedError: something in it cannot be written down; says what, and the ways out.
    """
    if init is not None and style.name != "nnx":
        raise UnsupportedError(
            f"init= is for Flax NNX modules, and {type(model).__name__} is none", hint="leave it out"
        )
    try:
        if style.name == "nnx":
            return _describe_nnx(model, tree, init)
        named: dict[str, Any] = {}
        form = {"function" if style.name == "function" else "model": values.encode(model, named)}
        if style.name != "equinox":
            form["params" if style.name == "function" else "variables"] = values.encode(style.state, named)
        _prove(form, style, named)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{_spell(model)} cannot be saved by its class: {error.message}",
            found=error.found,
            hint=error.hint
            or "give that a name in a module, or pass example_inputs=(...) for a graph that needs no class",
        ) from error
    return form


def check(form: object, style: str, names: Names) -> dict[str, Any]:
    """The class form of a file, every name of which is known here. Imports the library of the style, and nothing else.

    Raises:
        UntrustedError: a name that nobody allowed.
        UnsupportedError: its library is not installed.
        CorruptionError: no such form, or nested too deep.
    """
    if not isinstance(form, dict):
        raise CorruptionError(f"{names.where} describes no class", file=names.where)
    found = list(_names(form, names.where))
    library = _LIBRARY.get(style)
    for name in found:
        if str(name).partition(".")[0] not in {"flax", "equinox", "jax"}:
            _ = names.resolve(name)
    if library is not None:
        try:
            _ = importlib.import_module(library)  # one of three, whatever the file says
        except ImportError as error:
            raise UnsupportedError(
                f"{names.where} holds a model of {library}", found=error, hint="install it"
            ) from error
    for name in found:
        _ = names.resolve(name)
    return form


def build(form: Mapping[str, Any], style: str, names: Names, loaded: StateTree, convert: Callable[[Any], Any]) -> Any:
    """The model that a checked form describes, with the arrays of `loaded`; `convert` gives their dtype and device.

    Raises:
        MismatchError: a class is no longer what it was when the model was saved.
        CorruptionError: nothing that `describe` writes.
    """
    words = placing.words_of(loaded.skeleton)

    def leaf(name: str) -> Any:
        found = loaded.leaves.get(name)
        if not isinstance(found, Tensor):
            raise MismatchError(f"{names.where} has no tensor {name[:100]!r}", missing=(name,), hint="save it again")
        word = words.get(name, leaves.ARRAY)
        maker = placing.maker(word, None)
        if maker is not None:
            return maker.build(found)
        return convert(values.array_of(found, word, leaves.build))

    def made(key: str) -> Any:
        if key not in form:
            raise CorruptionError(f"{names.where} describes no {key}", file=names.where)
        return values.decode(form[key], names, leaf)

    if style == "nnx":
        return _build_nnx(form, names, loaded, convert)
    if style == "function":
        return Function(made("function"), made("params"))
    model = made("model")
    if style not in _LIBRARY or not isinstance(model, sys.modules[_LIBRARY[style]].Module):
        raise CorruptionError(f"{names.where} builds a {type(model).__name__}, which is no module", file=names.where)
    return model.bind(made("variables")) if style == "linen" else model


def _describe_nnx(model: Any, tree: StateTree, init: Mapping[str, Any] | None) -> dict[str, Any]:
    kind = type(model)
    kept = arguments_of(model)
    if init is None and kept is None:
        needed = [
            p.name for p in list(inspect.signature(kind.__init__).parameters.values())[1:] if p.default is p.empty
        ]
        raise UnsupportedError(
            f"the arguments of its constructor ({', '.join(needed)}) were not kept",
            hint="decorate its class with @safepoint.register before instances are made, or pass "
            "init={argument: value}, or example_inputs=(...) for a graph that needs no class",
        )
    positional, keywords = kept if init is None and kept is not None else ((), dict(init or {}))
    named: dict[str, Any] = {}
    form: dict[str, Any] = {
        "class": values.encode(kind, named),
        "positional": [values.encode(value, named, f"({number})") for number, value in enumerate(positional)],
        "arguments": [[name, values.encode(value, named, f"({name}=)")] for name, value in keywords.items()],
        "set": [],
    }
    names = Names({}, (), "the model", named)
    built = _shell(form, names)
    live, there = _plain(model), _plain(built)
    form["set"] = [
        [list(path), name, values.encode(value, named)]
        for (path, name), value in live.items()
        if there.get((path, name)) != value
    ]
    built = _shell(form, names)
    if _plain(built) != live or match(_abstract(built).leaves, tree.leaves).error("the model", cast=False) is not None:
        raise UnsupportedError("what its constructor makes is another model: it was changed since")
    return form


def _build_nnx(form: Mapping[str, Any], names: Names, loaded: StateTree, convert: Callable[[Any], Any]) -> Any:
    model = _shell(form, names)
    error = match(_abstract(model).leaves, loaded.leaves).error(names.where, cast=False)
    if error is not None:
        raise MismatchError(
            f"{names.where} does not fit its own class",
            missing=error.missing,
            unexpected=error.unexpected,
            differs=error.differs,
            found=str(error.message)[:1000],
            hint="use the version of the class that saved it, or load its graph",
        )
    words = placing.words_of(loaded.skeleton)

    def place(name: str, live: Any) -> Any:
        return convert(placing.put(loaded.leaves, words, name, live))

    nnx.update(model, place, Scope())
    return model


def _shell(form: Mapping[str, Any], names: Names) -> Any:
    """A module without memory: its constructor ran, no array was made."""
    flax = sys.modules["flax.nnx"]

    def leaf(name: str) -> Any:
        raise CorruptionError(f"{names.where}: an argument is the tensor {name[:100]!r}", file=names.where)

    kind = values.decode(form.get("class"), names, leaf)
    if not (isinstance(kind, type) and issubclass(kind, flax.Module)):
        raise CorruptionError(f"{names.where} builds a model of {kind!r}, which is no class of NNX", file=names.where)
    try:
        model = flax.eval_shape(
            lambda: kind(*_arguments(form, "positional", names, leaf), **_keywords(form, names, leaf))
        )
    except SafepointError:
        raise
    except Exception as error:  # whatever a constructor raises for arguments that it does not take
        raise UnsupportedError(
            f"{kind.__name__} in {names.where} cannot be built from the arguments that are known",
            found=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}",
            hint="its class, or flax itself, has changed since it was saved",
        ) from error
    places = dict(flax.iter_graph(model))
    for path, name, value in _pairs(form, "set", 3, names.where):
        owner = places.get(tuple(path) if isinstance(path, list) else None)
        if (
            not isinstance(owner, flax.Pytree)
            or not is_value(vars(owner).get(name, owner))
            or str(name).startswith("_")
        ):
            raise CorruptionError(f"{names.where} sets {str(name)[:100]!r}, which is no value", file=names.where)
        setattr(owner, name, values.decode(value, names, leaf))
    return model


def _arguments(form: Mapping[str, Any], key: str, names: Names, leaf: Callable[[str], Any]) -> list[Any]:
    found = form.get(key, [])
    if not isinstance(found, list):
        raise CorruptionError(f"{names.where}: {key} are none", file=names.where)
    return [values.decode(value, names, leaf) for value in found]


def _keywords(form: Mapping[str, Any], names: Names, leaf: Callable[[str], Any]) -> dict[str, Any]:
    return {str(n): values.decode(v, names, leaf) for n, v in _pairs(form, "arguments", 2, names.where)}


def _pairs(form: Mapping[str, Any], key: str, width: int, where: str) -> list[Any]:
    found = form.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == width for each in found):
        raise CorruptionError(f"{where}: {key} are none", file=where)
    return found


def _plain(model: Any) -> dict[tuple[tuple[Any, ...], str], Any]:
    """(path, name) → plain value, of every attribute of every part of an NNX module."""
    flax = sys.modules["flax.nnx"]
    return {
        (tuple(path), name): value
        for path, node in flax.iter_graph(model)
        if isinstance(node, flax.Pytree)
        for name, value in vars(node).items()
        if is_value(value) and not name.startswith("_")
    }


def _abstract(model: Any) -> StateTree:
    from safepoint.adapters.jax import _capture

    return _capture(model, Scope(), alive=False)


def _prove(form: Mapping[str, Any], style: Style, named: Mapping[str, Any]) -> None:
    """Build what was written and write that down: it must be the same."""
    arrays = style.subject.arrays
    names = Names({}, (), "the model", named)

    def leaf(name: str) -> Any:
        if name not in arrays:
            raise UnsupportedError(f"{name} is an array in a static field, or in what JAX does not flatten")
        return arrays[name]

    for key, value in form.items():
        try:
            again = values.encode(values.decode(value, names, leaf), {})
        except UnsupportedError:
            raise
        except SafepointError as error:
            raise UnsupportedError(f"it does not come back: {error.message}", found=error.found) from error
        if again != value:
            raise UnsupportedError(f"its {key} does not come back as it is")


def _names(form: Any, where: str) -> Iterator[Any]:
    """Every name in a form, wherever it stands.

    Raises:
        CorruptionError: it is nested too deep, or too large.
    """
    todo: list[tuple[Any, int]] = [(form, 0)]
    seen = 0
    while todo:
        item, depth = todo.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            raise CorruptionError(f"the structure in {where} is too deep or too large", file=where)
        if isinstance(item, dict):
            if len(item) == 1:
                ((tag, content),) = item.items()
                if tag == "name":
                    yield content
                elif tag in {"module", "object", "partial"} and isinstance(content, list) and content:
                    yield content[0]
            todo += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            todo += [(child, depth + 1) for child in item]


def _spell(model: Any) -> str:
    return str(getattr(model, "__qualname__", type(model).__qualname__))


def converter(device: Any, dtype: Any) -> Callable[[Any], Any]:
    """What puts an array where it was asked for, floating-point ones in the dtype that was asked for.

    Raises:
        UnsupportedError: no such dtype, or not a floating-point one.
    """
    try:
        wanted = None if dtype is None else jax.numpy.dtype(dtype)
    except TypeError as error:
        raise UnsupportedError(f"dtype={dtype!r} is none of JAX's", found=error) from error
    if wanted is not None and not jax.numpy.issubdtype(wanted, jax.numpy.floating):
        raise UnsupportedError(f"dtype={dtype!r} is no floating-point dtype", expected='such as "bfloat16"')

    def convert(array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if wanted is not None and not leaves.is_key(array) and jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            array = array.astype(wanted)
        return array if device is None else jax.device_put(array, device)

    return convert
