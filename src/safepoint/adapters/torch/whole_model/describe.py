"""A module as a node: its class by name, the arguments of its constructor, and what was changed since.

    {"class": "torch.nn.Sequential",
     "children": [["0", {"class": "torch.nn.Linear", "arguments": [["in_features", 4], ["out_features", 2]]}]]}

`arguments` and `positional` are what the constructor is called with (see `values`); `children` are put in afterwards,
by path; `attributes` are plain values that were set afterwards; `items` are those of a ParameterList; `generation` is
how a model of `transformers` generates; a module with an `id` may be met again as {"same": id}. Pairs are lists because
order is data.

Invariant: every node was built, and compared with its module, before it is returned.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, final

from torch import nn

from safepoint.adapters.constructed import arguments_of
from safepoint.adapters.registered import qualified_name
from safepoint.adapters.torch import tensors
from safepoint.adapters.torch.whole_model import hugging_face, layers, values
from safepoint.adapters.torch.whole_model.build import MAX_DEPTH, Builder
from safepoint.adapters.torch.whole_model.compare import differences, inner, shallow
from safepoint.adapters.torch.whole_model.isolation import constructing
from safepoint.adapters.torch.whole_model.names import Names, name_of
from safepoint.errors import SafepointError, UnsupportedError
from safepoint.tree import Tensor

_log = logging.getLogger("safepoint")
_WAYS_OUT = (
    "decorate its class with @safepoint.register before instances are made, or pass init={argument: value}, "
    "or example_inputs=(...) for a graph that needs no class"
)
_OWN_WAYS_OUT = (
    "undo that, or pass example_inputs=(...) for a graph, or make it part of a class with @safepoint.register"
)
_ANY = 1 << 62
_ARGUMENTS = "__safepoint__/arguments"


@final
class Describer:
    """Writes one model down. Tensors among constructor arguments are collected in `tensors`."""

    def __init__(self, init: Mapping[str, Any] | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._init = init
        self._nodes: dict[int, dict[str, Any]] = {}
        self._alive: list[Any] = []  # an id is only good while its object lives
        self._path: list[str] = []
        self._ids = 0
        self._known: dict[str, Any] = {}
        self._builder = Builder(Names({}, (), "the model", self._known), self.tensors, most_layers=_ANY)

    def describe(self, model: Any) -> dict[str, Any]:
        """The node of a whole model.

        Raises:
            UnsupportedError: a module in it cannot be written down; says which, why, and the ways out.
        """
        return self._described(inner(model), self._init)

    def tensor(self, leaf: Tensor) -> str:
        """Keep a tensor that is an argument; returns the name it goes by in the file."""
        name = f"{_ARGUMENTS}/{len(self.tensors)}"
        self.tensors[name] = leaf
        return name

    def module(self, module: Any) -> dict[str, Any]:
        """The node of a module, or {"same": id} where it was described before."""
        module = inner(module)
        known = self._nodes.get(id(module))
        if known is None:
            return self._described(module, None)
        if "id" not in known:
            known["id"] = self._ids
            self._builder.name(self._ids, self._builder.module(known))
            self._ids += 1
        return {"same": known["id"]}

    def _described(self, module: Any, init: Mapping[str, Any] | None) -> dict[str, Any]:
        if len(self._path) > MAX_DEPTH // 2:
            raise UnsupportedError(f"modules are nested deeper than {MAX_DEPTH // 2}")
        node = self._node(module, init)
        self._prove(module, node)
        self._nodes[id(module)] = node
        self._alive.append(module)
        return node

    def _node(self, module: Any, init: Mapping[str, Any] | None) -> dict[str, Any]:
        kind = type(module)
        own = layers.name_of(kind)
        if own is None:
            return self._user(module, init)
        if init:
            raise UnsupportedError(f"init= is for classes of your own, and the model is a {own}", hint="leave it out")
        if kind in layers.CONTAINERS:
            pairs = [[name, self._child(name, child)] for name, child in module._modules.items()]
            return {"class": own, "children": pairs}
        if kind in layers.LISTS:
            items = [[key, self._item(value)] for key, value in layers.parameter_list(module)]
            return {"class": own, "items": items}
        try:
            given = layers.arguments(module)
        except (AttributeError, IndexError) as error:
            raise self._refusal(module, f"its constructor arguments are not to be found ({error})") from error
        return {"class": own, "arguments": self._arguments(module, given)}

    def _user(self, module: Any, init: Mapping[str, Any] | None) -> dict[str, Any]:
        name = name_of(type(module))
        if name is None:
            raise self._refusal(module, "its class has no name")
        if init is not None:
            return {"class": name, "arguments": self._arguments(module, dict(init))}
        found = arguments_of(module)
        if found is None and hugging_face.name_of(type(module)) is not None:
            return self._hugging_face(module, name)
        if found is None:
            needed = _required(type(module))
            if needed:
                raise self._refusal(module, f"the arguments of its constructor ({', '.join(needed)}) were not kept")
            return {"class": name, "arguments": []}  # its defaults; `_prove` tells whether they are the right ones
        positional, keywords = found
        node: dict[str, Any] = {"class": name, "arguments": self._arguments(module, keywords)}
        if positional:
            node["positional"] = [self._argument(module, str(i), value) for i, value in enumerate(positional)]
        return node

    def _hugging_face(self, module: Any, name: str) -> dict[str, Any]:
        node: dict[str, Any] = {"class": name, "arguments": self._arguments(module, hugging_face.arguments(module))}
        generation = hugging_face.generation(module)
        return node if generation is None else {**node, "generation": values.encode(generation, self)}

    def _arguments(self, module: Any, given: Mapping[str, Any]) -> list[list[Any]]:
        return [[name, self._argument(module, name, value)] for name, value in given.items()]

    def _argument(self, module: Any, name: str, value: Any) -> Any:
        self._path.append(f"({name}=)")
        try:
            return values.encode(value, self)
        except UnsupportedError as error:
            if error.hint is not None:
                raise
            raise self._refusal(module, f"its argument {name} is {error.message}") from error
        finally:
            self._path.pop()

    def _child(self, name: str, child: Any) -> Any:
        if child is None:
            return None
        self._path.append(name)
        try:
            return self.module(child)
        finally:
            self._path.pop()

    def _item(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            spec = tensors.leaf(value).spec
            return {"parameter": [list(spec.shape), spec.dtype]}
        return values.encode(value, self)

    def _prove(self, module: Any, node: dict[str, Any]) -> None:
        """Build what the node says and compare; children that are others are described by themselves."""
        built = self._built(module, node)
        is_container = type(module) in layers.CONTAINERS
        why = shallow(module, built) if is_container else self._changed(module, node, built)
        if why is not None:
            raise self._refusal(module, why)
        self._builder.keep(node, built)

    def _changed(self, module: Any, node: dict[str, Any], built: Any) -> str | None:
        found = differences(module, built)
        if found.why is None and (found.children or found.attributes):
            children = [[path, self._child(path, _at(module, path))] for path in found.children]
            given = [[path, name, values.encode(value, self)] for (path, name), value in found.attributes.items()]
            node.update({key: what for key, what in (("children", children), ("attributes", given)) if what})
            self._builder.change(built, node)
            again = differences(module, built)
            if again.why is None and (again.children or again.attributes):
                what = [*again.children, *(".".join(key) for key in again.attributes)][0]
                return f"{what} does not come back as it is"
            found.why = again.why
        for path, name in found.dropped:
            where = ".".join(part for part in (*self._path, path, name) if part)
            _log.warning("%s was set after construction and is private or no plain value: it is not saved", where)
        return found.why

    def _built(self, module: Any, node: dict[str, Any]) -> Any:
        self._known.update({name: type(m) for m in module.modules() if (name := name_of(type(m)))})
        try:
            with constructing(_ANY, "the model"):
                return self._builder.module(node)
        except SafepointError as error:
            why = error.found if isinstance(error, UnsupportedError) and error.found else error.message
            raise self._refusal(module, f"its constructor did not take the arguments that are known: {why}") from error

    def _refusal(self, module: Any, why: str) -> UnsupportedError:
        path = ".".join(self._path) or "the model"
        own = layers.name_of(type(module)) is not None
        return UnsupportedError(
            f"{path} ({qualified_name(type(module))}) cannot be saved by its class: {why}",
            hint=_OWN_WAYS_OUT if own else _WAYS_OUT,
        )


def _required(kind: type) -> list[str]:
    """Parameters of a constructor without a default."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(kind).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind in named]


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = inner(module)._modules[name]
    return module
