"""Writes HDF5: h5py lays the file out, with nothing in its datasets; their bytes are put into it as they come.

Each tensor is a dataset at its name, slashes as groups; bfloat16, which HDF5 lacks, as Keras marks it.
Source: HDF5 1.14 (`H5D_ALLOC_TIME_EARLY`), `saving_lib` of Keras 3.15.
"""

from __future__ import annotations

import io
from typing import Any, final

import numpy as np

from safepoint.codec.hdf5 import import_h5py
from safepoint.formats.writing.content import Content, check_dtypes, refuse_name
from safepoint.formats.writing.output import Output
from safepoint.tree import TensorSpec, dtype_of, join_name

TITLE = "HDF5"
_KNOWN = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "bfloat16", "complex64", "complex128",
})  # fmt: skip
_PAGE = 4096


def check(content: Content) -> None:
    """Whether everything has a place.

    Raises:
        UnsupportedError: a dtype or a name has none, or h5py is not installed.
    """
    import_h5py("writing HDF5")
    check_dtypes(content, _KNOWN, TITLE)
    for name in content.tensors:
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in name:
            raise refuse_name(name, TITLE, "a part of it is empty, or a dot")
        above = ""
        for part in parts[:-1]:
            above = join_name(above, part)
            if above in content.tensors:
                raise refuse_name(name, TITLE, f"{above[:80]!r} is a tensor and cannot be a group")


def write(content: Content, out: Output) -> None:
    """Write all tensors; values have no place here."""
    file, places = _laid_out(content)
    for start, name in places:
        out.append(file.bytes_between(out.position, start))
        for piece in content.tensors[name].pieces():
            out.append(piece)
    out.append(file.bytes_between(out.position, max(file.num_bytes, out.position)))


def _laid_out(content: Content) -> tuple[_Pages, list[tuple[int, str]]]:
    """The file but for the bytes of tensors; and where those go, in order."""
    h5py = import_h5py("writing HDF5")
    pages = _Pages()
    places: list[tuple[int, str]] = []
    with h5py.File(pages, "w", libver="earliest") as file:
        for name, tensor in content.tensors.items():
            dataset = _dataset(h5py, file, name, tensor.spec)
            if tensor.spec.num_bytes:
                places.append((int(dataset.id.get_offset()), name))
    return pages, sorted(places)


def _dataset(h5py: Any, file: Any, name: str, spec: TensorSpec) -> Any:
    """A dataset in one stretch that has its place now and is never filled by HDF5."""
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 2) if spec.dtype == "bfloat16" else h5py.h5t.py_create(dtype_of(spec.dtype))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    group, _, last = name.rpartition("/")
    parent = file.require_group(group) if group else file
    space = h5py.h5s.create_simple(spec.shape) if spec.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.Dataset(h5py.h5d.create(parent.id, last.encode(), kind, space, dcpl=properties))
    if spec.dtype == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"
    return dataset


@final
class _Pages(io.RawIOBase):
    """A file of which only the pages that were written to are kept: what HDF5 says about datasets, not their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.num_bytes = 0

    def bytes_between(self, start: int, stop: int) -> bytes:
        """What stands there, zeros where nothing was written."""
        found = bytearray(stop - start)
        for number in range(start // _PAGE, -(-stop // _PAGE)):
            page = self._pages.get(number)
            if page is not None:
                first, last = max(start, number * _PAGE), min(stop, (number + 1) * _PAGE)
                found[first - start : last - start] = page[first - number * _PAGE : last - number * _PAGE]
        return bytes(found)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.num_bytes = self._position if size is None else size
        return self.num_bytes

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.num_bytes - self._position))
        memoryview(buffer)[:count] = self.bytes_between(self._position, self._position + count)
        self._position += count
        return count

    def write(self, data: Any) -> int:
        view = np.frombuffer(data, np.uint8)
        done = 0
        while done < len(view):
            number, start = divmod(self._position + done, _PAGE)
            count = min(_PAGE - start, len(view) - done)
            page = self._pages.setdefault(number, bytearray(_PAGE))
            page[start : start + count] = view[done : done + count].tobytes()
            done += count
        self._position += done
        self.num_bytes = max(self.num_bytes, self._position)
        return done
