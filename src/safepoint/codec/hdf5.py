"""HDF5 files, of Keras above all: plain datasets by name, nothing that points outside or expands.

Invariant: only hard links, each object once; a dataset's declared size is checked against what is stored of it before
anything is allocated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from safepoint.codec.hdf5_texts import texts_of
from safepoint.errors import CorruptionError, SafepointError, UnsupportedError
from safepoint.tree import DTYPES, TensorSpec, dtype_name, dtype_of, join_name

_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_FILTERS = frozenset({1, 2, 3})  # deflate, shuffle, checksum: what HDF5 itself brings
_MAX_EXPANSION = 1032  # deflate cannot do more
_VARS = "vars"


@contextmanager
def opened_hdf5(file: IO[bytes] | io.RawIOBase, path: str) -> Iterator[Any]:
    """The HDF5 file, open for reading within the context.

    Raises:
        As `open_hdf5`.
    """
    with open_hdf5(file, path) as weights:
        yield weights


def open_hdf5(file: IO[bytes] | io.RawIOBase, path: str) -> Any:
    """The HDF5 file, open for reading.

    Raises:
        UnsupportedError: h5py is not installed.
        CorruptionError: not an HDF5 file.
    """
    library = import_h5py(f"reading {path}")
    with told_as_damage(path):
        return library.File(file, "r")


@contextmanager
def told_as_damage(path: str, name: str = "") -> Iterator[None]:
    """Whatever the library raises over a file is damage of it: h5py has no error of its own, and many of Python's.

    Raises:
        CorruptionError: in place of those.
    """
    try:
        yield
    except SafepointError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        what = f"{name} in {path} is damaged" if name else f"{path} is damaged, or no HDF5 file"
        raise CorruptionError(what, file=path, name=name or None, found=error) from error


def import_h5py(why: str) -> Any:
    """The library.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UnsupportedError(f"{why} needs h5py", hint='install it: pip install "safepoint[formats]"') from error
    return h5py


def datasets(weights: Any, file: IO[bytes] | io.RawIOBase, path: str) -> dict[str, Any]:
    """Name → dataset, each checked; names as Keras spells them (`layers/dense/vars/0`).

    Args:
        weights: the opened file.
        file: that it was opened from.
        path: of it, for errors.

    Raises:
        CorruptionError: links, external or virtual data, references, filters of others, or sizes that are not stored.
    """
    found: dict[str, Any] = {}
    with told_as_damage(path):
        for name, dataset in _visit(weights, "", path, set(), 0):
            _check(dataset, file, path, name)
            found[name] = dataset
    return found


def spec_of(dataset: Any) -> TensorSpec:
    """Shape and dtype of a checked dataset; Keras marks bfloat16, which HDF5 lacks, by an attribute."""
    name = "bfloat16" if dataset.dtype.kind == "V" else dtype_name(dataset.dtype)
    return TensorSpec(tuple(int(n) for n in dataset.shape), name)


def read_into(dataset: Any, spec: TensorSpec, data: NDArray[np.uint8], path: str) -> None:
    """Fill `uint8[spec.num_bytes]` from a checked dataset.

    Raises:
        CorruptionError: HDF5 cannot read it.
    """
    wanted = np.dtype((np.void, 2)) if dataset.dtype.kind == "V" else dtype_of(spec.dtype)
    array = data.view(wanted).reshape(spec.shape)
    with told_as_damage(path, dataset.name):
        if array.size:
            dataset.read_direct(array)


def texts_at(obj: Any, file: IO[bytes] | io.RawIOBase, names: Collection[str], path: str) -> dict[str, str]:
    """Those attributes of a group or dataset that are texts, in a file as `datasets` has it.

    Raises:
        CorruptionError: the file is damaged.
    """

    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length) or b""

    with told_as_damage(path):
        return texts_of(read, file.seek(0, io.SEEK_END), _address(obj), names, path=path)


def _address(obj: Any) -> int:
    """Where the header of a group or dataset is in its file."""
    import h5py

    return int(h5py.h5o.get_info(obj.id).addr)


def _visit(group: Any, prefix: str, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    import h5py

    address = _address(group)
    if address in seen or depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
        raise CorruptionError(f"groups of the weights in {path} contain each other", file=path, name=prefix)
    seen.add(address)
    for key in group:
        name = join_name(prefix, key)
        if group.get(key, getclass=True, getlink=True) is not h5py.HardLink:
            raise _refused(path, name, "a link to something else")
        kind = group.get(key, getclass=True)
        if kind is h5py.Group:
            yield from _visit(group[key], name, path, seen, depth + 1)
        elif kind is h5py.Dataset:
            yield name, group[key]
        else:
            raise _refused(path, name, "a named type")


def _check(dataset: Any, file: IO[bytes] | io.RawIOBase, path: str, name: str) -> None:
    if dataset.shape is None or dataset.is_virtual or dataset.external:
        raise _refused(path, name, "data outside of the file")
    is_opaque = dataset.dtype == np.dtype((np.void, 2))
    bfloat16 = is_opaque and texts_at(dataset, file, {"dtype"}, path).get("dtype") == "bfloat16"
    if not bfloat16 and (dataset.dtype.kind not in "biufc" or dataset.dtype.name not in DTYPES):
        raise _refused(path, name, f"elements of type {dataset.dtype}")
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if filters - _FILTERS:
        raise _refused(path, name, "a filter that HDF5 would have to load")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = int(dataset.id.get_storage_size()) * (_MAX_EXPANSION if filters else 1)
    if declared > stored:
        raise CorruptionError(
            f"{name} in {path} is larger than what is stored of it",
            file=path,
            name=name,
            expected=f"at most {stored:,} bytes",
            found=f"{declared:,} bytes",
        )


def _refused(path: str, name: str, what: str) -> CorruptionError:
    return CorruptionError(
        f"{name} in {path} is {what}; Keras never writes that and nothing was followed", file=path, name=name
    )


def is_variable(name: str) -> bool:
    """Whether a dataset is where Keras keeps variables: `.../vars/<key>`."""
    return f"/{name}".rpartition("/")[0].endswith(f"/{_VARS}")
