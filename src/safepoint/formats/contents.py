"""What a stranger's file holds: a state tree whose tensors are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError
from safepoint.formats.files import Readable
from safepoint.limits import MAX_DIMENSION, MAX_RANK
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec
from safepoint.tree.leaves import Bytes


class Closable(Protocol):
    """What is open: a file, or a library's reader of one."""

    num_bytes: int

    def close(self) -> None:
        """Close it; harmless when repeated."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Contents:
    """An opened file, or folder of files, of a format that is not safepoint's own.

    Attributes:
        kind: of the format, such as "safetensors".
        title: the same in words.
        framework: whose format it is, or ""; the file may still be anyone's.
        location: where it is.
        tree: tensors and plain values by name.
        metadata: what the file says beside them; plain data.
        files: what is open.
    """

    kind: str
    title: str
    framework: str
    location: str
    tree: StateTree
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Closable, ...] = ()

    @property
    def file_bytes(self) -> int:
        """Size on disk of what is open."""
        return sum(file.num_bytes for file in self.files)

    def load(
        self,
        names: Iterable[str],
        *,
        into: Mapping[str, NDArray[np.uint8]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> StateTree:
        """The leaves called `names`, each in fresh memory or in its place in `into`.

        Raises:
            CorruptionError: a file became shorter, or a checksum that it carries does not fit.
            StoreError: it cannot be read.
        """
        leaves: dict[str, Leaf] = {}
        for name, data in self._read(names, progress):
            leaf = self.tree.leaves[name]
            if not isinstance(leaf, Tensor) or data is None:
                leaves[name] = leaf
            elif into is not None and name in into:
                into[name][:] = data
                leaves[name] = Tensor.of_bytes(into[name], leaf.spec)
            else:
                leaves[name] = Tensor.of_bytes(data, leaf.spec)
        return StateTree(leaves)

    def check(self, names: Iterable[str], *, progress: Callable[[int, int], None] | None = None) -> None:
        """Read tensors and keep nothing: what cannot be read, or breaks a checksum, raises here."""
        for _ in self._read(names, progress):
            pass

    def stream(
        self, names: Iterable[str], *, progress: Callable[[int, int], None] | None = None
    ) -> Mapping[str, Tensor]:
        """Tensors that are read when they are asked for; `check` came before."""
        del progress
        return {name: self.tree.tensors[name] for name in names}

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same bytes."""
        tensors = self.tree.tensors
        return bool(np.array_equal(tensors[first].read(), tensors[second].read()))

    def close(self) -> None:
        """Close every file; what was read stays."""
        for file in self.files:
            file.close()

    def _read(
        self, names: Iterable[str], progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[str, Bytes | None]]:
        wanted = list(names)
        tensors = self.tree.tensors
        total = sum(tensors[name].spec.num_bytes for name in wanted if name in tensors)
        done = 0
        for name in wanted:
            data = tensors[name].read() if name in tensors else None
            yield name, data
            done += 0 if data is None else len(data)
            if progress is not None:
                progress(done, total)


def stretch(file: Readable, offset: int, spec: TensorSpec) -> Tensor:
    """A tensor whose bytes lie in one stretch of a file from `offset` on, little-endian and in C order.

    Raises:
        CorruptionError: the file ends before.
    """
    check_inside(file, offset, spec.num_bytes)

    def part(start: int, stop: int) -> Bytes:
        return file.array(offset + start, stop - start)

    return Tensor(spec, partial(part, 0, spec.num_bytes), read_range=part)


def check_inside(file: Readable, offset: int, num_bytes: int) -> None:
    """Whether a stretch lies inside a file.

    Raises:
        CorruptionError: it does not.
    """
    if offset < 0 or num_bytes < 0 or offset + num_bytes > file.num_bytes:
        raise CorruptionError(
            f"{file.path} is damaged, or cut short",
            file=file.path,
            expected=f"bytes {offset} to {offset + num_bytes}",
            found=f"a file of {file.num_bytes} bytes",
        )


def checked_shape(shape: Iterable[object], *, file: str, name: str) -> tuple[int, ...]:
    """`shape`, if an array could have it.

    Raises:
        CorruptionError: it could not.
    """
    found = list(shape)
    sizes = tuple(size for size in found if type(size) is int and 0 <= size <= MAX_DIMENSION)
    if len(found) > MAX_RANK or len(sizes) != len(found):
        raise CorruptionError(
            f"{file} is damaged: {name[:80]} has an impossible shape",
            file=file,
            name=name,
            expected=f"at most {MAX_RANK} sizes from 0 to 2**48",
            found=str(found)[:80],
        )
    return sizes
