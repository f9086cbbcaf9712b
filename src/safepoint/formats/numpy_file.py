"""NumPy's files: `.npy`, and `.npz` archives of them, by a header parser of our own.

A header is Python text to NumPy, which evaluates it; here it is matched, its limits checked before anything is read.
Source: `numpy/lib/_format_impl.py` of NumPy 2.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError
from safepoint.formats.contents import Contents, checked_shape
from safepoint.formats.files import Readable
from safepoint.formats.members import Archive
from safepoint.tree import NUMPY_NUMBERS, Leaf, StateTree, Tensor, TensorSpec, bytes_of, dtype_name
from safepoint.tree.leaves import Bytes

MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000
_MAX_TEXTS = 10_000
_MAX_TEXT_BYTES = 1 << 20
_HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^'\\]{1,20}'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,20}, ?)*(?:\d{1,20})?)\), ?\}[ ]*\n",
    re.DOTALL,
)
_TEXTS = re.compile(r"[<>|=]?([US])(\d{1,9})")

Part = Callable[[int, int, bool], Bytes]
"""(start, stop, whole) → bytes of a `.npy` file; verified where `whole` and there is a checksum."""


class _Header(NamedTuple):
    descr: str
    fortran: bool
    shape: tuple[int, ...]
    start: int


def read(file: Readable) -> Contents:
    """The contents of a `.npy` file: one tensor, called "".

    Raises:
        UntrustedError: it holds objects, which are a pickle.
        UnsupportedError: records, times, or a dtype that is not known.
        CorruptionError: it is damaged.
    """
    leaf = _leaf(lambda start, stop, _whole: file.array(start, stop - start), file.num_bytes, file.path, "the array")
    tree = StateTree(leaf if isinstance(leaf, dict) else {"": leaf})
    return Contents("npy", "NumPy array", "NumPy", file.path, tree, {}, (file,))


def read_archive(archive: Archive) -> Contents:
    """The contents of a `.npz` file: one tensor a member, called like it without `.npy`.

    Raises:
        As `read`.
    """
    file = archive.file
    leaves: dict[str, Leaf] = {}
    for name, member in archive.members.items():
        label = name.removesuffix(".npy")
        leaf = _leaf(partial(_part, archive, name), member.num_bytes, file.path, name)
        found = {f"{label}/{key}": value for key, value in leaf.items()} if isinstance(leaf, dict) else {label: leaf}
        for key, value in found.items():
            if key in leaves:
                raise CorruptionError(f"{file.path} has two things called {key[:80]!r}", file=file.path, name=key)
            leaves[key] = value
    return Contents("npz", "NumPy archive", "NumPy", file.path, StateTree(leaves), {}, (file,))


def _part(archive: Archive, name: str, start: int, stop: int, whole: bool) -> Bytes:  # noqa: FBT001 — `Part`
    return archive.whole(name, start, stop) if whole else archive.part(name, start, stop)


def _leaf(part: Part, num_bytes: int, file: str, name: str) -> Leaf | dict[str, Leaf]:
    header = _header(part, num_bytes, file, name)
    if (texts := _TEXTS.fullmatch(header.descr)) is not None:
        return _texts(part, header, num_bytes, texts, file, name)
    dtype = _dtype(header.descr, file, name)
    spec = TensorSpec(checked_shape(header.shape, file=file, name=name), dtype_name(dtype))
    if header.start + spec.num_bytes != num_bytes:
        raise _wrong(file, name, expected=f"{spec} in {spec.num_bytes} bytes", found=f"{num_bytes - header.start}")
    start = header.start
    if dtype.isnative and (not header.fortran or sum(size != 1 for size in spec.shape) <= 1):
        return Tensor(
            spec,
            lambda: part(start, start + spec.num_bytes, True),  # noqa: FBT003
            read_range=lambda first, last: part(start + first, start + last, False),  # noqa: FBT003
        )

    def read_all() -> Bytes:
        data = part(start, start + spec.num_bytes, True).view(dtype)  # noqa: FBT003
        return bytes_of(data.reshape(spec.shape, order="F" if header.fortran else "C"))

    return Tensor(spec, read_all)


def _header(part: Part, num_bytes: int, file: str, name: str) -> _Header:
    head = part(0, min(12, num_bytes), False).tobytes()  # noqa: FBT003
    width = {1: 2, 2: 4, 3: 4}.get(head[6] if len(head) > 6 else 0)
    if not head.startswith(MAGIC) or width is None or len(head) < 12:
        raise _wrong(file, name, found="no NumPy header")
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MAX_HEADER_BYTES or start > num_bytes:
        raise _wrong(file, name, expected=f"a header of {_MAX_HEADER_BYTES} bytes at most", found=f"{length} bytes")
    text = part(8 + width, start, False).tobytes().decode("latin-1")  # noqa: FBT003
    found = _HEADER.fullmatch(text)
    if found is None:
        raise _wrong(file, name, found=f"a header that NumPy never writes: {text[:60]!r}")
    shape = tuple(int(size) for size in found["shape"].split(",") if size.strip())
    return _Header(found["descr"].strip("'"), found["fortran"] == "True", shape, start)


def _dtype(descr: str, file: str, name: str) -> np.dtype[Any]:
    if descr.lstrip("<>|=").startswith("O") or "O" in descr:
        raise UntrustedError(
            f"{name[:80]} in {file} holds Python objects, which are a pickle; nothing was run",
            hint="load it where you trust it, and save its numbers",
        )
    if not NUMPY_NUMBERS.fullmatch(descr):
        raise UnsupportedError(
            f"{name[:80]} in {file} has elements of {descr[:40]!r}",
            expected="numbers, truth values or text",
            hint="save records field by field; save bfloat16 and its kin as safetensors",
        )
    return np.dtype(descr)


def _texts(
    part: Part, header: _Header, num_bytes: int, kind: re.Match[str], file: str, name: str
) -> Leaf | dict[str, Leaf]:
    """Text, which is no tensor: values, one for each element."""
    count = math.prod(header.shape)
    width = int(kind[2]) * (4 if kind[1] == "U" else 1)
    if header.start + count * width != num_bytes or count > _MAX_TEXTS or count * width > _MAX_TEXT_BYTES:
        raise _wrong(file, name, expected="a few short texts", found=f"{count} of {width} bytes")
    data = part(header.start, num_bytes, True).tobytes()  # noqa: FBT003
    try:
        values: list[str | bytes] = np.frombuffer(data, np.dtype(kind[0])).tolist() if width else [""] * count
    except (ValueError, UnicodeDecodeError) as error:
        raise _wrong(file, name, found=error) from error
    return values[0] if not header.shape else {str(index): value for index, value in enumerate(values)}


def _wrong(file: str, name: str, *, expected: object = None, found: object) -> CorruptionError:
    return CorruptionError(
        f"{name[:80]} in {file} is damaged, or no NumPy array", file=file, name=name, expected=expected, found=found
    )
