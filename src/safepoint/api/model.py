"""Whole models in one file: structure, weights, configuration and, if compiled, the optimizer's state.

Invariant: a file names things and never contains them; loading runs no code from it, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from safepoint.adapters import LoadRequest, SaveRequest, format_of, whole_models
from safepoint.errors import CorruptionError, ExistsError, NotFoundError, StoreError, UnsupportedError
from safepoint.repository.model_file import read_model_file, write_model_file
from safepoint.store import nearest_path, replace_file
from safepoint.tree import StateTree, TensorSpec

_log = logging.getLogger("safepoint")
_TENSORS = "model.safetensors"
_CONFIG = "config.json"
_REPOSITORY = "safepoint.json"
_KERAS = "keras"
_FOREIGN = frozenset({".keras", ".h5", ".pt", ".pth", ".pt2"})  # names that promise another tool's format
_Form = Literal["auto", "class", "graph"]


def save_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    example_inputs: Sequence[Any] | None = None,
    optimizer: Any = None,
    init: Mapping[str, Any] | None = None,
    params: Any = None,
) -> None:
    """Save a whole model to one file, which takes the place of what was there only when it is whole and durable.

    A compiled Keras model brings its optimizer's state with it. The path may have any suffix or none; one that ends in
    a slash becomes a folder with `model.safetensors` and `config.json`.

    Args:
        model: a built Keras model, a `torch.nn.Module`, or for JAX a Flax or Equinox module or a function.
        path: where to.
        example_inputs: the positional inputs of one call (PyTorch, JAX): the file then also holds the graph of the
            model, which runs where its class does not exist, for other batch sizes too.
        optimizer: whose state goes into the file too (PyTorch); Keras models bring theirs.
        init: constructor arguments, for classes that are not registered with `@safepoint.register`.
        params: the pytree of parameters, for a JAX function or Linen module that is called with them.

    Raises:
        UnsupportedError: the model is not built, holds code, or is of a framework that cannot be saved whole yet.
        ExistsError: the path is a folder that holds something else.
        StoreError: the disk refused; the old file is untouched.
    """
    started = time.perf_counter()
    request = SaveRequest(example_inputs, optimizer, init, params)
    target = _target(path)
    structure, tree, kind = _take_apart(model, request)
    if target.suffix in _FOREIGN:
        _log.warning("%s is written in safepoint's format, whatever its name: safepoint.load_model opens it", target)
    write_model_file(target, tree, structure=structure, format=kind)
    if target.name == _TENSORS and _is_folder_path(path):
        module: Any = whole_models(kind)
        known = module.folder_config(model) if hasattr(module, "folder_config") else None
        _write_config(target.parent / _CONFIG, structure if known is None else known)
    _say("saved", target, [tensor.spec for tensor in tree.tensors.values()], started)


def load_model(
    path: str | os.PathLike[str],
    *,
    form: _Form = "auto",
    device: Any = None,
    dtype: Any = None,
    mmap: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Any:
    """The model that was saved: it predicts the same; rebuilt from its class it trains on, compiled if it was.

    Opens what `save_model` wrote and native `.keras` files. Built only from the framework's own public classes, what is
    registered (`@safepoint.register`, `keras.saving`), and what the caller allows; there is no weaker mode.

    Args:
        path: a file, or a folder that `save_model` wrote.
        form: what to rebuild it from: its "class" (or configuration), its exported "graph"; "auto": the class where it
            is known, else the graph.
        device: where to put it; not for Keras models, whose backend decides.
        dtype: for the floating-point weights; None: as saved.
        mmap: leave the weights of a PyTorch model in the file's own pages, shared between processes; every byte is
            verified all the same. What the program writes to them is its own and never reaches the file, which must
            not be changed in place meanwhile; saving to its path again replaces it, and is no matter.
        custom_objects: name → class or function that the file may name.
        trust: prefixes of modules, imported by the program, whose classes and functions the file may name.

    Raises:
        NotFoundError: nothing is there.
        UntrustedError: the file names something nobody allowed; nothing was imported or run.
        CorruptionError: the file is not what was written; names the tensor.
        MismatchError: a class is no longer what it was when the model was saved.
        UnsupportedError: a file of another kind; the message says what opens it.
    """
    started = time.perf_counter()
    if form not in get_args(_Form):
        raise UnsupportedError(f"form={form!r} is no form of a model", expected=", ".join(map(repr, get_args(_Form))))
    source = _source(os.fspath(path))
    request = LoadRequest(str(source), form, device, dtype, dict(custom_objects or {}), _prefixes(trust))
    try:
        model, specs = _from_archive(request, mmap=mmap) if kind_of(source) == "zip" else _from_file(request, mmap=mmap)
    except CorruptionError as error:
        error.advise("get the file again from where it was made")
        raise
    _say("loaded", source, specs, started)
    return model


def _take_apart(model: Any, request: SaveRequest) -> tuple[dict[str, Any], StateTree, str]:
    kind = format_of(model)
    module = None if kind is None else whole_models(kind)
    if kind is None or module is None:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be saved as a whole model",
            expected="a Keras model, a torch.nn.Module, a Flax or Equinox module, or a JAX function with params=",
            hint="safepoint.Checkpoint(model=model).save(directory) keeps its state, of any framework",
        )
    return *module.take_apart(model, request), kind


def _from_file(request: LoadRequest, *, mmap: bool) -> tuple[Any, list[TensorSpec]]:
    file = read_model_file(request.where)
    module = whole_models(file.format, where=file.path)
    if module is None:
        raise UnsupportedError(
            f"{file.path} holds a model of a kind that this version does not build",
            expected="a Keras, PyTorch or JAX model",
            found=file.format,
            hint="update safepoint",
        )
    if mmap and not getattr(module, "MAPS", False):
        raise UnsupportedError(
            f"{file.path} cannot be mapped: only PyTorch's tensors may lie in a file's pages",
            found=f"a {file.format} model, whose framework copies what it is given",
            hint="leave mmap= out",
        )
    model = module.put_together(file.structure, file.tree, file.map if mmap else file.load, request)
    return model, [tensor.spec for tensor in file.tree.tensors.values()]


def _from_archive(request: LoadRequest, *, mmap: bool) -> tuple[Any, list[TensorSpec]]:
    if mmap:
        raise UnsupportedError(f"{request.where} is a .keras file, which cannot be mapped", hint="leave mmap= out")
    whole: Any = whole_models(_KERAS, where=request.where)
    archive = whole.read_archive(request.where)
    return whole.put_together_archive(archive, request), list(archive.specs.values())


def _prefixes(trust: Sequence[str]) -> tuple[str, ...]:
    return (trust,) if isinstance(trust, str) else tuple(trust)


def _is_folder_path(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(("/", os.sep))


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()  # `exists` says no where a name is none
        is_repository = (target / _REPOSITORY).exists()
    except (OSError, ValueError) as error:  # too long, not a name at all, or not to be looked into
        raise NotFoundError(
            f"{os.fspath(path)[:80]!r} cannot be looked at", expected="a path", found=error, hint="choose another path"
        ) from error
    if is_repository:
        raise ExistsError(f"{target} is a repository of checkpoints", hint="choose another path for the model")
    if _is_folder_path(path):
        if target.exists() and not target.is_dir():
            raise ExistsError(f"{target} is a file", hint="choose another path, or leave the slash out to replace it")
        return target / _TENSORS
    if target.is_dir():
        raise ExistsError(
            f"{target} is a folder", hint=f"end the path with a slash ({target}/) to save the model into it"
        )
    return target


def _source(path: str) -> Path:
    source = Path(path)
    try:
        if source.is_dir():
            return _in_folder(source)
        found = source.exists()
    except (OSError, ValueError) as error:  # too long, not a name at all, or not to be looked into
        raise NotFoundError(
            f"{path[:80]!r} cannot be looked at", expected="a model file", found=error, hint="check the path"
        ) from error
    if found and not source.is_file():
        raise NotFoundError(f"{source} is not a file", expected="a model file or folder")
    if not found:
        near = nearest_path(source)
        hint = f"did you mean {near}?" if near else "check the path"
        raise NotFoundError(f"there is no {source}", expected="a model file or folder", hint=hint)
    return source


def _in_folder(folder: Path) -> Path:
    if (folder / _TENSORS).is_file():
        return folder / _TENSORS
    if (folder / _REPOSITORY).exists():
        raise UnsupportedError(
            f"{folder} is a repository of checkpoints, not a model",
            hint=f"build the model, then safepoint.Checkpoint(model=model).restore({str(folder)!r})",
        )
    if (folder / "saved_model.pb").exists():
        raise UnsupportedError(
            f"{folder} is a SavedModel: its graph is a program, and loading it would run what it says",
            hint="load it where you trust it, and save the Keras model with safepoint.save_model",
        )
    if (folder / "model.weights.h5").exists():
        raise UnsupportedError(f"{folder} is an unpacked .keras model", hint="save it as one .keras file, or zip it")
    raise NotFoundError(
        f"{folder} holds no model",
        expected=_TENSORS,
        found=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing",
        hint="check the path",
    )


def kind_of(path: Path) -> Literal["zip", "tensors"]:
    """What a file is by its first bytes; its name says nothing.

    Raises:
        UnsupportedError: a kind that is not opened, and what to do with it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise StoreError(f"cannot read {path}", error=error, path=str(path)) from error
    if head.startswith(b"PK\x03\x04"):
        first_member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first_member.endswith((b"/data.pkl", b"/byteorder", b"/version")):
            raise UnsupportedError(
                f"{path} is a PyTorch file: its structure is a pickle",
                hint="build the model, and safepoint.Checkpoint(model=model).restore(path) puts its weights into it",
            )
        return "zip"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise UnsupportedError(
            f"{path} is an HDF5 file, Keras' old format or weights alone",
            hint="load it in Keras where you trust it, and save the model with safepoint.save_model",
        )
    # A safetensors header of 640 bytes begins like a pickle too: its length's high bytes and `{` tell them apart.
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"} and head[4:9] != b"\0\0\0\0{":
        raise UnsupportedError(
            f"{path} is a pickle: loading it would run what it says",
            hint="safepoint.open reads the tensors in it, without running anything",
        )
    if not head:
        raise CorruptionError(
            f"{path} is an empty file", file=str(path), expected="a model", found="0 bytes", hint="check the path"
        )
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\n\r" for c in text):
        raise CorruptionError(
            f"{path} is a text file, not a safetensors file",
            file=str(path),
            found=f"text that begins {text[:40]!r}",
            hint="check the path",
        )
    return "tensors"


def _write_config(path: Path, structure: Mapping[str, Any]) -> None:
    """For people and other tools; `load_model` reads the structure in the tensors' file, which belongs to them."""
    sink = replace_file(path)
    try:
        text = json.dumps(structure, indent=2, ensure_ascii=False).encode() + b"\n"
        sink.write_small(text)
        sink.commit(len(text))
    finally:
        sink.abort()


def _say(what: str, path: Path, specs: Sequence[TensorSpec], started: float) -> None:
    size, seconds = sum(spec.num_bytes for spec in specs), time.perf_counter() - started
    _log.info("%s %s: %d tensors, %d bytes, %.2f s", what, path, len(specs), size, seconds)
