"""HDF5 files, of Keras above all: plain datasets by name, nothing that points outside or expands.

Invariant: only hard links, each object once; a dataset's declared size is checked against what is stored of it before
anything is allocated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError, UnsupportedError
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
    try:
        return library.File(file, "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise CorruptionError(f"the weights in {path} are no HDF5 file", file=path, found=error) from error


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


def datasets(weights: Any, path: str) -> dict[str, Any]:
    """Name → dataset, each checked; names as Keras spells them (`layers/dense/vars/0`).

    Raises:
        CorruptionError: links, external or virtual data, references, filters of others, or sizes that are not stored.
    """
    found: dict[str, Any] = {}
    _visit(weights, "", path, found, set(), 0)
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
    try:
        if array.size:
            dataset.read_direct(array)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CorruptionError(
            f"{dataset.name} in {path} is damaged", file=path, name=dataset.name, found=error
        ) from error


def _visit(group: Any, prefix: str, path: str, found: dict[str, Any], seen: set[Any], depth: int) -> None:
    import h5py

    info = h5py.h5o.get_info(group.id)
    if info.addr in seen or depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
        raise CorruptionError(f"groups of the weights in {path} contain each other", file=path, name=prefix)
    seen.add(info.addr)
    for key in group:
        name = join_name(prefix, key)
        if group.get(key, getclass=True, getlink=True) is not h5py.HardLink:
            raise _refused(path, name, "a link to something else")
        kind = group.get(key, getclass=True)
        if kind is h5py.Group:
            _visit(group[key], name, path, found, seen, depth + 1)
        elif kind is h5py.Dataset:
            dataset = group[key]
            _check(dataset, path, name)
            found[name] = dataset
        else:
            raise _refused(path, name, "a named type")


def _check(dataset: Any, path: str, name: str) -> None:
    if dataset.shape is None or dataset.is_virtual or dataset.external:
        raise _refused(path, name, "data outside of the file")
    bfloat16 = dataset.dtype == np.dtype((np.void, 2)) and str(dataset.attrs.get("dtype")) == "bfloat16"
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
