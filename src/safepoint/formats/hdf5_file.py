"""HDF5 files of Keras: `.weights.h5`, whole models in the legacy `.h5`, and the weights inside a `.keras` archive.

Only hard links to plain datasets are read; a configuration is text, and nothing is built from it. Source: Keras 3.15,
`saving_lib` and `legacy_h5_format`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, final

import numpy as np

from safepoint.codec import check_member
from safepoint.codec.hdf5 import datasets, open_hdf5, read_into, spec_of, texts_at, told_as_damage
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.contents import Contents, stretch
from safepoint.formats.files import Readable, Stream, Window
from safepoint.formats.members import Archive
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec
from safepoint.tree.leaves import Bytes

MAGIC = b"\x89HDF\r\n\x1a\n"
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MAX_TEXT_BYTES = 64 << 20
_MAX_UNPACKED_BYTES = 1 << 30
_ATTRIBUTES = ("keras_version", "backend", "model_config", "training_config")


@final
class _Opened:
    """An HDF5 file and what it is in, closed together."""

    def __init__(self, library: Any, file: Readable) -> None:
        self._library = library
        self._file = file
        self.num_bytes = file.num_bytes
        self.closed = False

    def close(self) -> None:
        """Close both; harmless when repeated."""
        self.closed = True
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._library.close()
        self._file.close()


def read(file: Readable) -> Contents:
    """The contents of an HDF5 file: each dataset by its path.

    Raises:
        CorruptionError: links, external or virtual data, filters of others, or sizes that are not stored.
        UnsupportedError: h5py is not installed.
    """
    stream = Stream(file)
    library = open_hdf5(stream, file.path)
    opened = _Opened(library, file)
    with told_as_damage(file.path):
        leaves = _leaves(library, stream, file, opened, lambda: None)
    metadata = _attributes(texts_at(library, stream, _ATTRIBUTES, file.path))
    title = "Keras HDF5 model" if "model_config" in metadata else "HDF5 file"
    framework = "Keras" if metadata or any("/vars/" in name for name in leaves) else ""
    return Contents("hdf5", title, framework, file.path, StateTree(leaves), metadata, (opened,))


def is_keras(archive: Archive) -> bool:
    """Whether a zip file is a `.keras` model."""
    return {CONFIG, METADATA} <= archive.members.keys()


def read_keras(archive: Archive) -> Contents:
    """The contents of a `.keras` archive: its weights by their path, its configuration as data.

    Raises:
        As `read`.
    """
    file = archive.file
    config, metadata = (_json(archive, name) for name in (CONFIG, METADATA))
    member = archive.members.get(WEIGHTS)
    if member is None:
        raise UnsupportedError(
            f"{file.path} has no {WEIGHTS}", hint="save it again with weights in HDF5, Keras' default"
        )
    if member.deflated:
        if member.num_bytes > _MAX_UNPACKED_BYTES:
            raise UnsupportedError(f"{WEIGHTS} in {file.path} is compressed, and too large to unpack")
        weights: Readable = _Memory(archive.whole(WEIGHTS, 0, member.num_bytes), file)
    else:
        weights = Window(file, member.start, member.num_bytes)
    stream = Stream(weights)
    library = open_hdf5(stream, file.path)
    opened = _Opened(library, weights)
    verified: list[bool] = [member.deflated]

    def verify() -> None:
        if not verified[0]:
            check_member(file.read, member, file=file.path)
            verified[0] = True

    with told_as_damage(file.path):
        leaves = _leaves(library, stream, weights, opened, verify)
    facts = {"keras_version": str(metadata.get("keras_version"))[:40], "config": config, "metadata": metadata}
    return Contents("keras", "Keras model", "Keras", file.path, StateTree(leaves), facts, (opened,))


@final
class _Memory:
    """Bytes in memory as a file."""

    def __init__(self, data: Bytes, file: Readable) -> None:
        self._data = data
        self._file = file
        self.path = file.path
        self.num_bytes = len(data)

    def array(self, offset: int, length: int) -> Bytes:
        """As `File.array`."""
        if offset < 0 or length < 0 or offset + length > self.num_bytes:
            raise CorruptionError(f"{self.path} is damaged, or cut short", file=self.path)
        return self._data[offset : offset + length].copy()

    def read(self, offset: int, length: int) -> bytes:
        """As `File.read`."""
        return self.array(offset, length).tobytes()

    def close(self) -> None:
        """Close the file that it came from."""
        self._file.close()


def _leaves(library: Any, stream: Stream, file: Readable, opened: _Opened, verify: Any) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {}
    for name, dataset in datasets(library, stream, file.path).items():
        spec = spec_of(dataset)
        offset = dataset.id.get_offset()
        read_whole = partial(_read, dataset, spec, opened, file.path, verify)
        if offset is not None and dataset.dtype.byteorder != ">" and spec.num_bytes:  # in one stretch of the file
            leaves[name] = Tensor(spec, read_whole, read_range=stretch(file, int(offset), spec).read_range)
        else:
            leaves[name] = Tensor(spec, read_whole)
    return leaves


def _read(dataset: Any, spec: TensorSpec, opened: _Opened, path: str, verify: Any) -> Bytes:
    if opened.closed:
        raise UnsupportedError(f"{path} was closed", hint="read inside the with block")
    verify()
    data = np.empty(spec.num_bytes, np.uint8)
    read_into(dataset, spec, data, path)
    return data


def _attributes(texts: Mapping[str, str]) -> dict[str, Any]:
    """What Keras wrote beside the weights; JSON as data, text as text."""
    found: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            found[name] = json.loads(text) if name.endswith("config") else text[:100]
        except (ValueError, RecursionError):
            found[name] = text[:1000]
    return found


def _json(archive: Archive, name: str) -> dict[str, Any]:
    try:
        document = json.loads(archive.content(name, at_most=_MAX_TEXT_BYTES).decode())
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{name} in {archive.file.path} is not JSON", file=archive.file.path) from error
    if not isinstance(document, dict):
        raise CorruptionError(f"{name} in {archive.file.path} is not an object", file=archive.file.path)
    return document
