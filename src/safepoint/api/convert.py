"""From anything that `open` reads into a file of another format, or a repository: what `safepoint convert` does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

import numpy as np

from safepoint import formats
from safepoint.api.arrangement import arranged, by_names, foreign_names
from safepoint.api.open import Tensors
from safepoint.api.open import open as open_any
from safepoint.api.outgoing import CASTS, Ledger, casts
from safepoint.errors import CorruptionError, ExistsError, NotFoundError, SafepointError, UnsupportedError
from safepoint.formats.writing import TARGETS, Content, Target, check_room, target_of, write
from safepoint.repository import Progress, Repository, Snapshot
from safepoint.tree import Branch, Leaf, Node, StateTree, Tensor, Value, check_names, join_name
from safepoint.tree import rename as rename_names
from safepoint.tree import select as select_names
from safepoint.tree.leaves import Bytes

REPOSITORY = "repository"
"""The word for a safepoint repository as what is written."""

_VERIFIED_IN_PARTS = frozenset({"snapshot", "model", "safetensors", "gguf", "onnx", "npy"})
"""Sources whose parts are verified as well as the whole, or not at all; others compare checksums of whole tensors."""
_MODEL_PARTS = ("model", "state_dict", "model_state_dict")
"""What programs call the model in a file that holds more."""


@final
@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done.

    Attributes:
        target: where it is.
        kind: of what was written.
        names: source name → name in the target, of tensors.
        cast: names in the target of tensors that were converted to another dtype.
        left_out: names of plain values that the format has no place for.
        opaque: source names of quantized tensors, which stay the bytes that they are.
        num_bytes: that were written.
    """

    target: str
    kind: str
    names: Mapping[str, str]
    cast: tuple[str, ...]
    left_out: tuple[str, ...]
    opaque: tuple[str, ...]
    num_bytes: int


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    dtype: str | None = None,
    select: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write what `source` holds to `target`, durable and read back when this returns; a crash leaves what was there.

    Names stay as `safepoint show` prints them, except that the tracked name of a snapshot's only object is left out of
    a stranger's file, and that files get one in a repository: `model/`.

    Args:
        source: whatever `open` takes.
        target: a path; its suffix is the format, no suffix means a new repository.
        to: the format, where the suffix does not say it: a key of `TARGETS`, or "repository".
        dtype: `bf16`, `f16` or `f32`: convert floating-point tensors.
        select: globs over the names; the others are left out.
        rename: regular expression → replacement, after that.
        force: replace a file.
        progress: see `Progress`; writing is the first half.

    Raises:
        ExistsError: `target` is there.
        UnsupportedError: the format has no place for a tensor, which is named, or a number is too large for `dtype`.
        CorruptionError: the source is damaged, or what was written cannot be read back; the target is as it was.
        StoreError: the disk refused; the target is as it was.
    """
    path = os.fspath(target)
    found = _target(path, to)
    wanted = None if dtype is None else _dtype(dtype)
    with open_any(source) as tensors:
        _check_apart(os.fspath(source), tensors, Path(path))
        leaves = _chosen(tensors, select)
        if found is None:
            return _to_repository(tensors, leaves, path, dtype=wanted, rename=rename, progress=progress)
        check_room(found, Path(path), force=force)
        names = foreign_names(tensors, leaves, found.kind)
        if rename:
            renamed = rename_names(names.values(), rename)
            names = {name: renamed[new] for name, new in names.items()}
        skeleton = by_names(names.values()) if rename else arranged(tensors, names)
        return _to_file(
            tensors, leaves, names, skeleton, found, Path(path), dtype=wanted, force=force, progress=progress
        )


def tracked_names(names: Iterable[str]) -> dict[str, str]:
    """Name in a file → name in a snapshot: all of one model, or of the parts that a file has beside its model."""
    names = list(names)
    tops = dict.fromkeys(name.partition("/")[0] for name in names)
    part = next((name for name in _MODEL_PARTS if name in tops and name not in names), None)
    if part is None:
        return {name: join_name("model", name) for name in names}
    return {name: f"model/{name[len(part) + 1 :]}" if name.startswith(f"{part}/") else name for name in names}


def tracked_tree(leaves: Mapping[str, Leaf], whole: StateTree | None = None) -> StateTree:
    """Leaves by their names in a snapshot as a tree of tracked objects.

    Args:
        leaves: what it will hold.
        whole: the tree that they are from, whose skeletons hold for objects that are kept as they were.
    """
    parts: dict[str, dict[str, Leaf]] = {}
    for name, leaf in leaves.items():
        top, _, rest = name.partition("/")
        parts.setdefault(top, {})[rest] = leaf
    children: dict[str, StateTree] = {}
    for top, found in parts.items():
        child = whole.child(top) if whole is not None and top in whole.names() else None
        kept = child is not None and child.leaves.keys() == found.keys()
        children[top] = StateTree(found, child.skeleton) if kept and child is not None else StateTree(found)
    return StateTree.join(children)


def cast_tree(tree: StateTree, dtype: str | None) -> tuple[StateTree, tuple[str, ...]]:
    """A tree whose floating-point tensors have another dtype when they are read, and the names of those."""
    changed = tuple(name for name, tensor in tree.tensors.items() if casts(tensor.spec, dtype))
    chosen = set(changed)
    ledger = Ledger(0, None)

    def convert_one(name: str, tensor: Tensor) -> Tensor:
        if name not in chosen:
            return tensor
        outgoing = ledger.outgoing(name, tensor, dtype=dtype, whole=True)
        return Tensor(outgoing.spec, lambda: _joined(outgoing.pieces(), outgoing.spec.num_bytes))

    return tree.map_tensors(convert_one), changed


def _joined(pieces: Iterable[Bytes], num_bytes: int) -> Bytes:
    data = np.empty(num_bytes, np.uint8)
    position = 0
    for piece in pieces:
        data[position : position + len(piece)] = piece
        position += len(piece)
    return data


def _target(path: str, to: str | None) -> Target | None:
    """The format to write; None: a repository."""
    if to is None:
        return None if _is_repository(path) else target_of(path)
    if to == REPOSITORY:
        return None
    if to not in TARGETS:
        raise UnsupportedError(f"{to!r} is no format that is written", expected=", ".join([*TARGETS, REPOSITORY]))
    return TARGETS[to]


def _is_repository(path: str) -> bool:
    try:
        return Path(path, "safepoint.json").exists()
    except (OSError, ValueError) as error:  # too long, or no name at all
        raise NotFoundError(f"{path[:80]!r} is not a path", found=error, hint="check it") from error


def _dtype(word: str) -> str:
    found = CASTS.get(word)
    if found is None:
        raise UnsupportedError(f"{word!r} is no dtype to convert to", expected="bf16, f16 or f32")
    return found


def _check_apart(opened: str, tensors: Tensors, target: Path) -> None:
    """Whether writing the target cannot change the source.

    Raises:
        UnsupportedError: it is the source, or lies in it.
    """
    source = Path(tensors.location.rpartition("@id:")[0] if tensors.kind == "snapshot" else tensors.location).resolve()
    files = [file.path for file in getattr(tensors.source, "files", ()) if hasattr(file, "path")]
    resolved = target.resolve()
    inside = Path(opened).resolve() in resolved.parents if Path(opened).is_dir() else False
    if inside or source in {resolved, *resolved.parents} or resolved in {Path(file).resolve() for file in files}:
        raise UnsupportedError(
            f"{target} is the source, or lies in it", expected="a target that is no part of it", hint="choose another"
        )


def _chosen(tensors: Tensors, select: Sequence[str] | None) -> dict[str, Leaf]:
    """Tensors and loaded values by name, in the source's order."""
    plain = tensors.plain
    leaves: dict[str, Leaf] = {name: plain.get(name, leaf) for name, leaf in tensors.tree.leaves.items()}
    if select is not None:
        leaves = {name: leaves[name] for name in select_names(leaves, select)}
    if not any(isinstance(leaf, Tensor) for leaf in leaves.values()):
        raise NotFoundError(f"{tensors.location} has no tensors to convert", hint="safepoint show tells what it has")
    return leaves


def _to_file(
    tensors: Tensors,
    leaves: Mapping[str, Leaf],
    names: Mapping[str, str],
    skeleton: Node,
    target: Target,
    path: Path,
    *,
    dtype: str | None,
    force: bool,
    progress: Progress | None,
) -> Conversion:
    _check_names(tuple(names.values()))
    whole = tensors.kind not in _VERIFIED_IN_PARTS
    mine = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    cast = {name: casts(tensor.spec, dtype) for name, tensor in mine.items()}
    ledger = Ledger(sum(tensor.spec.num_bytes for tensor in mine.values()), progress)
    outgoing = {
        names[name]: ledger.outgoing(names[name], tensor, dtype=cast[name], whole=whole)
        for name, tensor in mine.items()
    }
    values: dict[str, Value] = {names[name]: leaf for name, leaf in leaves.items() if not isinstance(leaf, Tensor)}
    kept = values if target.keeps_values else {}
    target.check(Content(outgoing, kept, _metadata(tensors), skeleton))

    def check(written: str) -> None:
        contents = formats.read(written)
        try:
            ledger.check(contents)
        finally:
            contents.close()

    with ledger.handing_over(outgoing, ahead=not whole) as read:
        content = Content(read, kept, _metadata(tensors), skeleton)
        place, num_bytes = write(target, path, content, force=force, check=check)
    return Conversion(
        str(place),
        target.kind,
        {name: names[name] for name in mine},
        tuple(names[name] for name, changed in cast.items() if changed),
        () if target.keeps_values else tuple(values),
        _opaque(tensors, leaves),
        num_bytes,
    )


def _opaque(tensors: Tensors, leaves: Mapping[str, Leaf]) -> tuple[str, ...]:
    quantized = tensors.metadata.get("quantized", {})
    return tuple(name for name in leaves if name in quantized)


def _check_names(names: Collection[str]) -> None:
    """Whether names can be kept: no file of ours may do what a stranger's name was made for."""
    try:
        check_names(names)
    except UnsupportedError as error:
        error.advise("--rename REGEX=NEW, or leave it out with --select")
        raise


def _metadata(tensors: Tensors) -> dict[str, str]:
    """What a safetensors file said of itself; that tensors are PyTorch's, which Hugging Face's readers ask for."""
    found = tensors.metadata.get("metadata")
    if tensors.kind == "safetensors" and "shards" not in tensors.metadata and isinstance(found, dict):
        return {str(key): str(value) for key, value in found.items()}
    theirs = tensors.framework == "PyTorch" or _is_torch(tensors.tree.skeleton)
    return {"format": "pt"} if theirs else {}


def _is_torch(node: Node) -> bool:
    """Whether an object of PyTorch is in a tree."""
    return isinstance(node, Branch) and (node.kind.startswith("torch.") or any(map(_is_torch, node.children)))


def _to_repository(
    tensors: Tensors,
    leaves: Mapping[str, Leaf],
    path: str,
    *,
    dtype: str | None,
    rename: Mapping[str, str] | None,
    progress: Progress | None,
) -> Conversion:
    if Repository(path).exists:
        raise ExistsError(
            f"{path} is a repository already, to which nothing is converted",
            hint=f"safepoint import {tensors.location} --into {path} adds to one that was imported",
        )
    ours = tensors.kind == "snapshot"
    names = {name: name for name in leaves} if ours else tracked_names(leaves)
    renamed = rename_names(names.values(), rename)
    names = {name: renamed[new] for name, new in names.items()}
    whole = tensors.tree if ours and not rename else None
    tree, cast = cast_tree(tracked_tree({names[name]: leaf for name, leaf in leaves.items()}, whole), dtype)
    with _taken_back(path) as committed:
        snapshot = _commit(tree, path, tensors.metadata if ours else {}, progress)
        committed.append(snapshot)
        found = Repository(path).verify()
        if found.damage:
            raise CorruptionError(f"{path} cannot be read back", file=path, found=found.damage[0].message)
    return Conversion(
        f"{path}@id:{snapshot.number}",
        REPOSITORY,
        {name: names[name] for name, leaf in leaves.items() if isinstance(leaf, Tensor)},
        cast,
        (),
        _opaque(tensors, leaves),
        snapshot.written_bytes,
    )


def _commit(tree: StateTree, path: str, facts: Mapping[str, Any], progress: Progress | None) -> Snapshot:
    """The tree as the first snapshot of a repository, with what was said about it where it comes from."""
    if not facts:
        return Repository(path).commit(tree, newest=None, progress=progress)
    moment = datetime.fromisoformat(facts["time"])
    return Repository(path, clock=lambda: moment).commit(
        tree,
        newest=None,
        step=facts["step"],
        metrics=facts["metrics"],
        config=facts["config"],
        tags=facts["tags"],
        environment=facts["environment"],
        progress=progress,
    )


@contextmanager
def _taken_back(path: str) -> Iterator[list[Snapshot]]:
    """A repository that is begun for one snapshot goes away if that is not saved whole; never what others saved there.

    Yields:
        Takes what was committed.
    """
    there = Path(path).exists()
    ours: list[Snapshot] = []
    try:
        yield ours
    except BaseException:
        if not there:
            store = Repository(path).store
            # Whoever else saves there holds the lock, or is in the list.
            with contextlib.suppress(SafepointError), store.lock(exclusive=True, wait=False):
                if len(list(store.list("snapshots"))) == len(ours):
                    shutil.rmtree(path, ignore_errors=True)
        raise
