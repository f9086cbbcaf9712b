"""Whole-model files: one file, replaced as a whole, every bit of it checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.repository.trees import assert_same, tree_of

from safepoint.codec import BLOCK_BYTES, digest
from safepoint.errors import CorruptionError, NotFoundError, SafepointError, UnsupportedError
from safepoint.repository import read_model_file, write_model_file
from safepoint.tree import Tensor


def leaves() -> dict[str, Any]:
    tied = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "w": tied, "head": tied, "c": np.ones(3, np.complex128), "c2": np.ones(3, np.complex128),
        "empty": np.zeros((0, 2)), "also empty": np.zeros((3, 0), np.int8), "b": np.arange(3, dtype=np.int16),
        "optimizer/m": np.ones(2), "step": 3,
    }  # fmt: skip


def write(path: Path, content: dict[str, Any], **options: Any) -> None:
    write_model_file(path, tree_of(content), structure={"class": "X"}, format="test", **options)


def load(path: Path, names: list[str] | None = None) -> dict[str, Any]:
    found = read_model_file(path).load(names).leaves
    return {name: leaf.numpy() if isinstance(leaf, Tensor) else leaf for name, leaf in found.items()}


@pytest.mark.parametrize("name", ["model", "model.keras", "a/b/c", "ü", "model.h5.bak"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, leaves())
    assert_same(load(tmp_path / name), leaves())
    model = read_model_file(tmp_path / name)
    assert (model.structure, model.format) == ({"class": "X"}, "test")
    assert_same(load(tmp_path / name, ["b"]), {"b": leaves()["b"], "step": 3})
    assert model.tree.tensors["w"].numpy().tolist() == leaves()["w"].tolist()


def test_a_model_without_tensors_is_a_file_too(tmp_path: Path) -> None:
    write(tmp_path / "m", {"step": 1})
    assert load(tmp_path / "m") == {"step": 1}
    write(tmp_path / "m", {})
    assert load(tmp_path / "m") == {}


def test_a_large_model_is_cut_into_blocks(tmp_path: Path) -> None:
    large = np.resize(np.arange(251, dtype=np.uint8), 2 * BLOCK_BYTES + 9)
    write(tmp_path / "m", {"large": large, "b": np.ones(3)})
    assert len(read_model_file(tmp_path / "m").stored["large"].blocks) == 3
    assert_same(load(tmp_path / "m"), {"large": large, "b": np.ones(3)})


def test_tied_tensors_are_stored_once_and_come_back_twice(tmp_path: Path) -> None:
    tied = np.random.default_rng(0).standard_normal(10_000)
    write(tmp_path / "m", {"a": tied, "b": tied})
    assert (tmp_path / "m").stat().st_size < 100_000
    assert_same(load(tmp_path / "m"), {"a": tied, "b": tied})


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    write(tmp_path / "m", leaves())
    data = bytearray((tmp_path / "m").read_bytes())
    text = data.rfind(b"}") + 1
    path = tmp_path / "flipped"
    for position in [*range(0, text, 5), *range(text, len(data), 53), *range(len(data) - 200, len(data), 3)]:
        for bit in (1, 32):
            data[position] ^= bit
            path.write_bytes(data)
            data[position] ^= bit
            with pytest.raises(SafepointError) as caught:
                load(path)
            assert isinstance(caught.value, CorruptionError | UnsupportedError), (position, bit)


def test_a_file_cut_anywhere_is_found(tmp_path: Path) -> None:
    write(tmp_path / "m", leaves())
    data = (tmp_path / "m").read_bytes()
    for length in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(CorruptionError):
            read_model_file(tmp_path / "cut")
    (tmp_path / "cut").write_bytes(data + b"\0")
    with pytest.raises(CorruptionError):
        read_model_file(tmp_path / "cut")


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with another document under a right digest."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["safepoint"])
    change(document)
    text = json.dumps(document)
    header["__metadata__"] |= {"safepoint": text, "safepoint.digest": digest(text.encode())}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    return path


def tensor(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in document["tensors"] if item["name"] == name)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another name": lambda d: tensor(d, "b").update(name="c3"),
    "another shape": lambda d: tensor(d, "w").update(shape=[4, 3]),
    "8 TB": lambda d: tensor(d, "b").update(shape=[4 << 40]),
    "8 TB with a block": lambda d: tensor(d, "b").update(shape=[4 << 40], blocks=[[0, 8 << 40, "", ""]]),
    "negative length": lambda d: tensor(d, "b").update(blocks=[[0, -6, "", ""], [0, 12, "", ""]]),
    "beyond the end": lambda d: tensor(d, "b")["blocks"][0].__setitem__(0, 10**9),
    "many dimensions": lambda d: tensor(d, "b").update(shape=[1] * 10_000),
    "a tensor less": lambda d: d["tensors"].pop(),
    "a tensor twice": lambda d: d["tensors"].append(tensor(d, "b")),
    "a value that is a tensor": lambda d: d["values"].append(["b", 1]),
    "another format": lambda d: d.update(format="other"),
    "no structure": lambda d: d.update(structure=[]),
    "a skeleton of nothing": lambda d: d.update(skeleton=3),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_document_that_lies_is_found(tmp_path: Path, lie: Callable[[dict[str, Any]], object]) -> None:
    write(tmp_path / "m", leaves())
    with pytest.raises(CorruptionError):
        load(rewritten(tmp_path / "m", lie))


def test_rewriting_by_itself_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m", leaves())
    assert_same(load(rewritten(tmp_path / "m", lambda _: None)), leaves())


def test_what_is_no_model_file_says_what_it_is(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "plain").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(UnsupportedError, match="holds tensors but no model"):
        read_model_file(tmp_path / "plain")
    for missing in (tmp_path / "nowhere", tmp_path / "plain" / "below", tmp_path):
        with pytest.raises(NotFoundError):
            read_model_file(missing)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotFoundError, match="not a file"):
        read_model_file(tmp_path / "fifo")
    surrogate = b'{"__metadata__":{"safepoint":"\\ud800"}}'
    (tmp_path / "surrogate").write_bytes(len(surrogate).to_bytes(8, "little") + surrogate)
    with pytest.raises(CorruptionError):
        read_model_file(tmp_path / "surrogate")


def test_a_newer_model_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", leaves())
    with pytest.raises(UnsupportedError, match="newer format"):
        load(rewritten(tmp_path / "m", lambda document: document.update(version=2)))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "m", leaves())

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m", {"other": np.ones(3)}, progress=stop)
    assert_same(load(tmp_path / "m"), leaves())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
