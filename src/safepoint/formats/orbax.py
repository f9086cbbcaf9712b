"""Orbax checkpoints: a tree in `_METADATA`, and arrays in zarr, each in its folder or all of them in an OCDBT store.

The tree is JSON, checked here; chunks are unpacked by TensorStore, which needs neither JAX nor Orbax and runs nothing.
It follows links and trusts sizes, so these are looked at before it is asked, and chunks before they are unpacked.
Source: `_src/metadata/tree.py`, `_src/checkpointers` in orbax-checkpoint 0.12; https://google.github.io/tensorstore.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from safepoint.errors import CorruptionError, NotFoundError, UnsupportedError
from safepoint.formats.contents import Contents, checked_shape
from safepoint.formats.files import Folder, read_json
from safepoint.formats.zstd import most_unpacked
from safepoint.tree import DTYPES, Leaf, StateTree, Tensor, TensorSpec, bytes_of, check_name, dtype_name
from safepoint.tree.leaves import Bytes

TREE = "_METADATA"
STEP = "_CHECKPOINT_METADATA"
_DONE = "commit_success.txt"
_TEXTS = "_strings.json"
_MOST_FILES = 1_000_000
_MOST_LEAVES = 1_000_000
_MOST_AT_ONCE = 256  # arrays that are looked up together
_CACHE_BYTES = 128 << 20
_MOST_CHUNK_BYTES = 32 << 20  # larger chunks are not unpacked again for each part of an array
_MOST_PACKED = 1024  # times what is on disk; zeros pack better, but not all that a model has
_FREE_BYTES = 64 << 20
_CODECS = {"zstd", "gzip", "zlib", "bytes", "transpose", "crc32c", "sharding_indexed"}  # deflate gives 1:1032 at most
_ARRAYS = {"jax.Array", "np.ndarray", "scalar"}


def read(folder: Path) -> Contents:
    """The contents of one checkpoint: a step of a `CheckpointManager`, an item of it, or what a checkpointer wrote.

    Raises:
        UnsupportedError: `safepoint[orbax]` is not installed, or a layout that is not read.
        CorruptionError: never committed, or not what it claims to be.
    """
    size = _Size(_checked_size(folder))
    step = _document(folder, STEP)
    if folder.name.partition(".orbax-checkpoint-tmp")[1] or not (
        step is None or step.get("commit_timestamp_nsecs") or (folder / _DONE).exists()
    ):
        raise CorruptionError(
            f"{folder} was never committed",
            file=str(folder),
            expected="a save that came to its end",
            hint="use another step",
        )
    items = [folder] if (folder / TREE).exists() else sorted(path.parent for path in folder.glob(f"*/{TREE}"))
    if not items:
        raise UnsupportedError(
            f"{folder} is an Orbax checkpoint without a tree",
            expected=f"{TREE}, in the folder or in one of its items",
            hint="restore it with Orbax, and save the tree with safepoint.Checkpoint(params=params).save(directory)",
        )
    leaves: dict[str, Leaf] = {}
    facts: dict[str, Any] = {}
    for item in items:
        found, about = _read_tree(item, size.num_bytes)
        if len(items) == 1:
            leaves, facts = found, about
        else:
            leaves |= {f"{item.name}/{name}": leaf for name, leaf in found.items()}
            facts[item.name] = about
    if folder.name.isascii() and folder.name.isdigit():
        facts["step"] = int(folder.name)
    if step is not None:
        facts |= {key: step[key] for key in ("metrics", "custom_metadata") if step.get(key)}
    others = {path.parent.name: _document(path.parent, path.name) for path in sorted(folder.glob("*/metadata"))}
    facts |= {"items": others} if others else {}
    return Contents("orbax", "Orbax checkpoint", "JAX", str(folder), StateTree(leaves), facts, (size,))


def newest_step(folder: Path) -> Path | None:
    """The highest step of a `CheckpointManager`'s folder that was committed, or None."""
    try:
        steps = [name for name in os.listdir(folder) if name.isascii() and name.isdigit()]  # noqa: PTH208
    except OSError:
        return None
    done = (folder / name for name in sorted(steps, key=int, reverse=True) if (folder / name / STEP).is_file())
    return next(done, None)


@final
class _Size:
    """What is open: nothing, between two reads."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def close(self) -> None:
        """Nothing is open."""


def _checked_size(folder: Path) -> int:
    """Bytes of all its files, none of which is a link or a device.

    Raises:
        CorruptionError: one is; or there are a million.
    """
    total = 0
    for count, (path, status) in enumerate(_walk(folder)):
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or count > _MOST_FILES:
            raise CorruptionError(
                f"{folder} holds what no checkpoint does",
                file=str(folder),
                expected=f"at most {_MOST_FILES:,} plain files",
                found=path,
            )
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.path, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _document(folder: Path, name: str) -> dict[str, Any] | None:
    try:
        file = Folder(folder).open(name)
    except NotFoundError:
        return None
    try:
        return read_json(file)
    finally:
        file.close()


def _read_tree(folder: Path, file_bytes: int) -> tuple[dict[str, Leaf], dict[str, Any]]:
    document = _document(folder, TREE) or {}
    texts = _document(folder, _TEXTS) or {}
    file = str(folder / TREE)
    described = document.get("tree_metadata")
    if not isinstance(described, dict) or len(described) > _MOST_LEAVES:
        raise CorruptionError(f"{file} is damaged: no tree", file=file, expected="tree_metadata")
    ocdbt, zarr3 = (folder / "manifest.ocdbt").exists(), document.get("use_zarr3") is True
    leaves: dict[str, Leaf] = {}
    arrays: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for entry in described.values():
        keys, kind = _keys(entry, file), _kind(entry, file)
        name, place = "/".join(keys), ".".join(keys)
        if name in leaves or name in arrays:
            raise CorruptionError(f"{file} has a name twice", file=file, name=name[:80])
        if kind == "string":
            leaves[name] = str(texts.get(place, ""))
        elif kind in _ARRAYS:
            arrays[name] = place
        elif kind is not None:
            left_out[name] = f"of type {kind[:80]}"
    options = {
        "driver": "zarr3" if zarr3 else "zarr",
        "recheck_cached_data": "open",
        # Where zeros are written like anything else, a chunk that is not there is lost.
        "fill_missing_data_reads": document.get("store_array_data_equal_to_fill_value") is not True,
    }
    stores = _opened(folder, arrays, options, ocdbt=ocdbt)
    tensors: dict[str, Leaf] = {name: _tensor(name, store, str(folder)) for name, store in stores.items()}
    total = sum(tensor.spec.num_bytes for tensor in tensors.values() if isinstance(tensor, Tensor))
    if total > _FREE_BYTES + _MOST_PACKED * file_bytes:
        raise CorruptionError(
            f"{folder} is damaged: its files cannot hold what they announce",
            file=str(folder),
            expected=f"at most {_MOST_PACKED} times {file_bytes:,} bytes",
            found=f"{total:,} bytes",
        )
    facts: dict[str, Any] = {"layout": f"{'zarr3' if zarr3 else 'zarr'}{' in OCDBT' if ocdbt else ''}"}
    return leaves | tensors, facts | ({"not_read": left_out} if left_out else {})


def _keys(entry: Any, file: str) -> list[str]:
    try:
        keys = [str(key["key"]) for key in entry["key_metadata"]]
        name = check_name("/".join(keys))
    except (KeyError, TypeError, UnsupportedError) as error:
        raise CorruptionError(f"{file} is damaged: a name that cannot be", file=file, found=error) from error
    if {"", ".", ".."} & {*name.split("/"), *".".join(keys).split("/")} or "\\" in name:
        raise CorruptionError(f"{file} names a file outside the folder", file=file, found=repr(name[:80]))
    return keys


def _kind(entry: Any, file: str) -> str | None:
    """The type of a leaf, None of what is empty, for which nothing is kept."""
    described = entry.get("value_metadata")
    if not isinstance(described, dict) or not isinstance(described.get("value_type"), str):
        raise CorruptionError(f"{file} is damaged: a leaf without a type", file=file)
    return None if described.get("skip_deserialize") is True else str(described["value_type"])


def _opened(folder: Path, arrays: Mapping[str, str], options: Mapping[str, Any], *, ocdbt: bool) -> dict[str, Any]:
    """Name → TensorStore's array, its metadata read."""
    if not arrays:
        return {}
    try:
        import tensorstore
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{folder} is an Orbax checkpoint, which needs tensorstore",
            hint='install it: pip install "safepoint[orbax]"',
        ) from error
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    def start(place: str) -> Any:
        base = {"driver": "file", "path": f"{folder.absolute()}/" if ocdbt else f"{folder.absolute()}/{place}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{place}/"} if ocdbt else base
        return tensorstore.open({**options, "kvstore": kvstore}, open=True, read=True, context=context)

    found: dict[str, Any] = {}
    names = list(arrays)
    for first in range(0, len(names), _MOST_AT_ONCE):
        started = []
        for name in names[first : first + _MOST_AT_ONCE]:
            with _telling(str(folder), name):
                started.append((name, start(arrays[name])))
        for name, future in started:
            with _telling(str(folder), name):
                found[name] = future.result()
    return found


def _tensor(name: str, store: Any, file: str) -> Tensor:
    """A tensor over TensorStore's array; its sizes are checked, as unpacking trusts them."""
    shape = checked_shape(store.shape, file=file, name=name)
    with _telling(file, name):
        spec = TensorSpec(shape, dtype_name(np.dtype(store.dtype.numpy_dtype)))
        chunk = tuple(store.chunk_layout.read_chunk.shape or shape)
    if any(part > max(size, 1) for part, size in zip(chunk, shape, strict=True)):
        raise CorruptionError(f"{file} is damaged: chunks larger than {name[:80]}", file=file, name=name, found=chunk)

    check = _chunk_check(store, spec, file, name)

    def read() -> Bytes:
        with _telling(file, name):
            check(0, shape[0] if shape else 1)
            return bytes_of(store.read().result())

    def part(start: int, stop: int) -> Bytes:
        row_bytes = spec.num_bytes // shape[0]
        first = start // row_bytes
        with _telling(file, name):
            check(first, -(-stop // row_bytes))
            rows = bytes_of(store[first : -(-stop // row_bytes)].read().result())
        return rows[start - first * row_bytes : stop - first * row_bytes]

    small = math.prod(chunk) * DTYPES[spec.dtype].itemsize <= _MOST_CHUNK_BYTES
    return Tensor(spec, read, read_range=part if shape and spec.num_bytes and small else None)


def _chunk_check(store: Any, spec: TensorSpec, file: str, name: str) -> Callable[[int, int], None]:
    """What looks at the packed chunks of some rows before TensorStore unpacks them, which trusts them.

    Raises:
        UnsupportedError: they are packed in a way of which is not known how much it unpacks to.
    """
    codecs = _codecs(store.spec().to_json().get("metadata", {}))
    if unknown := sorted(codecs - _CODECS):
        raise UnsupportedError(
            f"{file}: {name[:80]} is packed with {unknown[0][:80]}", expected=f"one of {', '.join(sorted(_CODECS))}"
        )
    shape = store.chunk_layout.write_chunk.shape or store.shape
    height = shape[0] if shape else 1
    most = 2 * min(math.prod(shape) * DTYPES[spec.dtype].itemsize, spec.num_bytes) + _FREE_BYTES
    unseen: dict[bytes, int] | None = None  # chunks that nobody looked at yet → first row

    def check(first: int, stop: int) -> None:
        nonlocal unseen
        if unseen is None:
            names = store.kvstore.list().result() if "zstd" in codecs else []
            found = {key: re.match(rb"(?:c[/.])?(\d+)", key) for key in names}
            unseen = {key: int(at[1]) * height if at and store.shape else 0 for key, at in found.items()}
        for key in [key for key, row in unseen.items() if row < stop and first < row + height]:
            data = store.kvstore.read(key).result().value
            if most_unpacked(data, enough=most, nested="sharding_indexed" in codecs) > most:
                raise CorruptionError(
                    f"{file} is damaged: a chunk of {name[:80]} unpacks to more than it holds",
                    file=file,
                    name=name,
                    expected=f"at most {most:,} bytes",
                )
            del unseen[key]

    return check


def _codecs(metadata: Any) -> set[str]:
    """What chunks are packed with, by zarr's names, at any depth."""
    if isinstance(metadata, dict):
        packed = [metadata.get("compressor"), *metadata.get("codecs", ()), *metadata.get("index_codecs", ())]
        inner = metadata.get("configuration")
        own = {str(one.get("id", one.get("name"))) for one in packed if isinstance(one, dict)}
        return own.union(*(_codecs(one) for one in (*packed, inner) if isinstance(one, dict)))
    return set()


@contextmanager
def _telling(file: str, name: str) -> Iterator[None]:
    """TensorStore's errors as ours: whatever it finds wrong with files is a `ValueError`."""
    try:
        yield
    except ValueError as error:
        found = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        what = f"{file} is damaged: {name[:80]} cannot be read"
        raise CorruptionError(what, file=file, name=name, found=found) from error
