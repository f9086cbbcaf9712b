"""State of Keras layers that is not in variables: vocabularies, bin boundaries, and files of custom layers.

Invariant: reading changes nothing; a layer whose state is already the saved one is left alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras.src.layers.preprocessing.index_lookup import IndexLookup

from safepoint.tree import Value

FILES = "assets"
_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@final
@dataclass(frozen=True, slots=True)
class Asset:
    """A value of a layer.

    Attributes:
        read: the value now.
        write: makes it the given one.
        constant: whether compiled functions hold it as a constant, so that they must be made again.
    """

    read: Callable[[], Value]
    write: Callable[[Value], None]
    constant: bool = True


def assets_of(layer: Any) -> Iterator[tuple[str, Asset]]:
    """Name → asset of one layer, names relative to it."""
    if isinstance(layer, IndexLookup):
        yield from _lookup(layer)
    elif isinstance(layer, keras.layers.Discretization):
        yield from _bins(layer)


def has_files(layer: Any) -> bool:
    """Whether a class of the user's keeps files: it has a `save_assets` of its own."""
    method = getattr(type(layer), "save_assets", None)
    return method is not None and not str(method.__module__).startswith("keras.")


def files_of(layer: Any) -> dict[str, bytes]:
    """What `save_assets` writes, by relative path."""
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def load_files(layer: Any, files: dict[str, bytes]) -> None:
    """Give such files back to `load_assets`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layer.load_assets(folder)


def _lookup(layer: Any) -> Iterator[tuple[str, Asset]]:
    """One value for vocabulary and weights: neither is right without the other."""

    def read() -> str:
        table = layer.lookup_table
        if layer.output_mode == "tf_idf":
            return _lookup_state(layer)
        if table not in _vocabularies:  # a table never changes: a new vocabulary is a new table
            _vocabularies[table] = _lookup_state(layer)
        return _vocabularies[table]

    def write(value: Value) -> None:
        if value == read():
            return
        state = json.loads(str(value))
        layer._frozen_vocab_size = None  # what follows the layer was checked by the shapes of its variables
        if not state["vocabulary"]:
            layer.lookup_table = layer._uninitialized_lookup_table()
        elif layer.output_mode == "tf_idf":
            layer.set_vocabulary(state["vocabulary"], idf_weights=np.array(state["idf_weights"], keras.config.floatx()))
        else:
            layer.set_vocabulary(state["vocabulary"])

    yield "vocabulary", Asset(read, write)


def _lookup_state(layer: Any) -> str:
    state: dict[str, Any] = {"vocabulary": []}
    if int(layer.lookup_table.size()) > 0:
        tokens = layer.get_vocabulary(include_special_tokens=True)
        state["vocabulary"] = [token if isinstance(token, str) else int(token) for token in tokens]
        if layer.output_mode == "tf_idf":
            weights = layer.idf_weights_const.numpy()
            state["idf_weights"] = [float(weight) for weight in weights[: len(tokens)]]  # the rest is padding
    return json.dumps(state, ensure_ascii=False)


def _bins(layer: Any) -> Iterator[tuple[str, Asset]]:
    def read() -> str:
        boundaries, summary = layer.bin_boundaries, getattr(layer, "summary", None)
        return json.dumps(
            {
                "bin_boundaries": None if boundaries is None else [float(edge) for edge in boundaries],
                "summary": None if summary is None else np.asarray(summary, np.float32).astype(float).tolist(),
            }
        )

    def write(value: Value) -> None:
        if value == read():
            return
        state = json.loads(str(value))
        layer.bin_boundaries = state["bin_boundaries"]
        if state["summary"] is not None:
            layer.summary = np.array(state["summary"], np.float32)

    yield "bin_boundaries", Asset(read, write)
