"""Hostile safetensors files and indices: refused by the right error, fast, and nothing else is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tests.attacks.watching import refused, watched
from tests.open.conftest import safetensors_bytes

import safepoint

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(table: object, data: bytes = b"\0" * 8) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


HEADERS = {
    "announces more than there is": (b"\xff\xff\xff\0\0\0\0\0{}", "cut short"),
    "a gap": (file_of({"a": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12), "not covered"),
    "an overlap": (file_of({"a": ONE, "b": ONE}), "overlap"),
    "bytes behind": (file_of({"a": ONE}, b"\0" * 9), "its size is wrong"),
    "a petabyte": (file_of({"a": {"dtype": "F32", "shape": [1 << 47, 8], "data_offsets": [0, 1 << 52]}}), "its size"),
    "a shape that overflows": (
        file_of({"a": {"dtype": "F32", "shape": [1 << 33] * 2, "data_offsets": [0, 8]}}),
        "needs",
    ),
    "true for a number": (file_of({"a": {**ONE, "shape": [True, 2]}}), "whole numbers"),
    "a key twice": (file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":0}'), "twice"),
    "100,000 levels": (file_of(b'{"a":' + b"[" * 100_000), "not JSON"),
    "NaN": (file_of(b'{"a":NaN}'), "not JSON"),
}


@pytest.mark.parametrize("data, word", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(data: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", safepoint.CorruptionError, word)


@pytest.mark.parametrize("shard", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\\b", "x\0", "n" * 2000])
def test_an_index_cannot_name_a_file_elsewhere(shard: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors_bytes({"a": np.zeros(2)}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(folder, safepoint.CorruptionError, "outside itself")


def test_a_shard_that_is_a_link_or_in_a_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(safetensors_bytes({"a": np.zeros(2)}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    for shard in ("link", "up/secret"):
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        refused(folder, safepoint.CorruptionError, "a link")


@pytest.mark.parametrize(
    "table, error",
    [
        ({"a": "missing"}, safepoint.NotFoundError),
        ({"a": "x", "b": "x"}, safepoint.CorruptionError),
        ({"b": "x"}, safepoint.CorruptionError),
        ({"a": 3}, safepoint.CorruptionError),
        ([], safepoint.CorruptionError),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(table: object, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors_bytes({"a": np.zeros(2)}))
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    refused(tmp_path, error, "missing|elsewhere|lacks|no index")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x"}}))
    with watched(tmp_path), pytest.raises(safepoint.NotFoundError):
        safepoint.open(tmp_path)


def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors_bytes({"a": np.zeros(2000)}))
    with safepoint.open(tmp_path / "x") as tensors:
        with (tmp_path / "x").open("r+b") as file:
            file.truncate(100)
        with pytest.raises(safepoint.CorruptionError, match="ends early"):
            tensors["a"].numpy()
