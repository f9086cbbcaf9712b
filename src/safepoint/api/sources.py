"""What a path leads to: a snapshot of a repository, a whole-model file, or a file of anyone's; one way for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np

from safepoint import formats
from safepoint.api.references import split_reference
from safepoint.errors import CorruptionError, NotFoundError, UnsupportedError
from safepoint.formats import Contents
from safepoint.repository import Before, ModelFile, Progress, Repository, is_model_header, read_model_file
from safepoint.tree import Branch, StateTree, Tensor

Found: TypeAlias = "tuple[Repository, str | int] | ModelFile | Contents"

GET_IT_AGAIN = "get the file again from where it was made"
"""What helps against damage of a file that no repository heals."""

_MARKER = "safepoint.json"


def locate(source: str | os.PathLike[str] | Repository, at: str | int = "latest") -> Found:
    """The repository and reference that `source` names, or the opened file.

    A path that leads nowhere is taken for a repository's, which says so when it is asked.

    Raises:
        NotFoundError: no path at all.
        UnsupportedError: a format that is not read, or two references.
        CorruptionError: a file that is not what it claims to be.
    """
    if isinstance(source, Repository):
        return source, at
    if not isinstance(source, str | os.PathLike):
        return Repository(source), at  # a store, or a TypeError that says what a path is
    path, reference = split_reference(source)
    if reference is not None and at != "latest":
        raise UnsupportedError(f"{os.fspath(source)!r} and at={at!r} say two things", hint="say it once")
    if not _is_foreign(path):
        return Repository(path), reference or at
    if reference is not None or at != "latest":
        raise NotFoundError(f"{path} has no snapshots", hint=f"leave @{reference or at} away")
    try:
        contents = formats.read(path)
        if contents.kind == "safetensors" and is_model_header(contents.metadata.get("metadata", {})):
            contents.close()
            return read_model_file(contents.location)
    except CorruptionError as error:
        error.advise(GET_IT_AGAIN)
        raise
    return contents


def _is_foreign(path: str) -> bool:
    place = Path(path)
    try:
        if place.is_dir():
            return not (place / _MARKER).exists() and formats.is_known_folder(path)
        return formats.is_known_file(path)
    except (OSError, ValueError) as error:  # too long, or not a name at all
        raise NotFoundError(f"{path[:80]!r} is not a path", found=error, hint="check it") from error


@final
class FileSource:
    """A file seen as a checkpoint: its top-level names where they are the tracked ones, else one object's.

    Args:
        file: what was opened.
        tracked: names that the caller tracks.
    """

    def __init__(self, file: ModelFile | Contents, tracked: Iterable[str]) -> None:
        self._file = file
        names = list(tracked)
        tops = dict.fromkeys(name.partition("/")[0] for name in file.tree.leaves)
        if isinstance(file, Contents) and names and set(names) <= tops.keys():
            self._prefix = ""
            self.tree = _split(file.tree, tops)
            return
        if len(names) != 1:
            raise UnsupportedError(
                f"{_path_of(file)} is one object's, and {len(names)} are tracked", hint="track only the model"
            )
        self._prefix = f"{names[0]}/"
        self.tree = StateTree.join({names[0]: file.tree})

    def load(
        self,
        names: Iterable[str],
        *,
        into: Any = None,
        before: Before | None = None,
        past_cache: bool = False,
        progress: Progress | None = None,
    ) -> StateTree:
        del past_cache  # of no use to formats that map their files, or unpack them
        wanted = list(names)
        tree = self._file.load(self._theirs(wanted), progress=progress)
        leaves = {f"{self._prefix}{name}": leaf for name, leaf in tree.leaves.items()}
        for name, memory in (into or {}).items():
            leaf = leaves[name]
            assert isinstance(leaf, Tensor)
            if before is not None:
                before(memory)
            memory[:] = leaf.read()
        return StateTree({name: leaves[name] for name in wanted}, Branch("dict"))

    def waits(self, names: Iterable[str]) -> bool:
        del names  # a stranger's file is checked as a whole first: most have no checksum of their own
        return False

    def check(self, names: Iterable[str], *, progress: Progress | None = None) -> None:
        if isinstance(self._file, Contents):
            self._file.check(self._theirs(names), progress=progress)

    def stream(self, names: Iterable[str], *, progress: Progress | None = None) -> Mapping[str, Tensor]:
        if not isinstance(self._file, Contents):  # loads, and so verifies, everything before anything changes
            return self.load(names, progress=progress).tensors
        return {f"{self._prefix}{name}": tensor for name, tensor in self._file.stream(self._theirs(names)).items()}

    def same(self, first: str, second: str) -> bool:
        tensors = self.load([first, second]).tensors
        return bool(np.array_equal(tensors[first].read(), tensors[second].read()))

    def _theirs(self, names: Iterable[str]) -> list[str]:
        return [name.removeprefix(self._prefix) for name in names]


def _split(tree: StateTree, tops: Iterable[str]) -> StateTree:
    """A tree whose names begin with those of its parts, as `StateTree.join` would have made it."""
    parts: dict[str, StateTree] = {}
    for top in tops:
        leaves = {n[len(top) + 1 :]: leaf for n, leaf in tree.leaves.items() if n == top or n.startswith(f"{top}/")}
        parts[top] = StateTree(leaves)
    return StateTree.join(parts)


def _path_of(file: ModelFile | Contents) -> str:
    return file.location if isinstance(file, Contents) else file.path
