"""Safetensors headers that lie: of strangers' files and of whole-model files, each refused by its own error.

Every attack says what it does; the words are those that its error must have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.watching import read_all, watched
from tests.crash.scenario import tree_of

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository import read_model_file, write_model_file


def file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    def entry(offsets: list[int]) -> dict[str, Any]:
        return {"dtype": "U8", "shape": [max(0, offsets[1] - offsets[0])], "data_offsets": offsets}

    return {"a": entry(first), "b": entry(second)}


DATA = bytes(16)
NOT_JSON = "not JSON"
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "cut short"),
    "seven bytes": (bytes(7), "cut short"),
    "header of no bytes": (file(b"", DATA), "cut short"),
    "header of one byte": (file(b"{", DATA), "cut short"),
    "header of 2**64-1 bytes": (file(one(), DATA, length=2**64 - 1), "cut short"),
    "header one byte longer than the file": (file(one(), length=len(json.dumps(one())) + 1), "cut short"),
    "header of 100 MB announced in a small file": (file(one(), DATA, length=100_000_000), "cut short"),
    "space before the header": (file(b" " + json.dumps(one()).encode(), DATA), "must be a JSON object"),
    "byte-order mark before the header": (file(b"\xef\xbb\xbf{}", b""), "must be a JSON object"),
    "header padded with NUL": (file(json.dumps(one()).encode() + b"\0\0", DATA), NOT_JSON),
    "header padded with newlines": (file(json.dumps(one()).encode() + b"\n", DATA), "padded with spaces"),
    "bytes behind the last tensor": (file(one(), DATA + b"polyglot"), "size is wrong"),
    "a hole between tensors": (file(two([0, 8], [9, 16]), DATA), "not covered"),
    "a hole before the first": (file(two([1, 8], [8, 16]), DATA), "not covered"),
    "tensors that overlap": (file(two([0, 9], [8, 16]), DATA), "overlap"),
    "two tensors of the same bytes": (file(two([0, 16], [0, 16]), DATA), "overlap"),
    "an end before its beginning": (file(one(data_offsets=[16, 0]), DATA), "in order"),
    "a negative offset": (file(one(data_offsets=[-16, 0]), DATA), "whole numbers"),
    "an offset with a point": (file(one(data_offsets=[0, 16.0]), DATA), "whole numbers"),
    "an offset as text": (file(one(data_offsets=[0, "16"]), DATA), "whole numbers"),
    "an offset that is true": (file(one(shape=[], dtype="U8", data_offsets=[0, True]), b"1"), "whole numbers"),
    "an offset of 5,000 digits": (file(json.dumps(one()).replace("16", "9" * 5000).encode(), DATA), NOT_JSON),
    "an end of 2**63": (file(one(data_offsets=[0, 2**63]), DATA), "needs 16 bytes"),
    "a shape that needs more": (file(one(shape=[5]), DATA), "needs 20 bytes"),
    "a shape whose product overflows": (file(one(shape=[2**33, 2**33]), DATA), "needs"),
    "a size over 2**48": (file(one(shape=[0, 2**62], data_offsets=[0, 0]), b""), "whole numbers"),
    "10,000 sizes": (file(one(shape=[1] * 10_000, data_offsets=[0, 4]), bytes(4)), "whole numbers"),
    "a negative size": (file(one(shape=[-4]), DATA), "whole numbers"),
    "a shape that is no list": (file(one(shape="4"), DATA), "whole numbers"),
    "a dtype that nobody has": (file(one(dtype="F77"), DATA), "unknown dtype"),
    "a dtype that is no text": (file(one(dtype=["F32"]), DATA), "unknown dtype"),
    "a field too many": (file(one(__class__="os.system"), DATA), "must have dtype"),
    "a field too few": (file({"w": {"dtype": "F32", "shape": [4]}}, DATA), "must have dtype"),
    "an entry that is a list": (file({"w": ["F32", [4], [0, 16]]}, DATA), "must have dtype"),
    "a name twice": (file(b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{}}'), NOT_JSON),
    "a field twice": (file(b'{"w":{"dtype":"U8","dtype":"F64","shape":[0],"data_offsets":[0,0]}}'), NOT_JSON),
    "half a surrogate pair": (file(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), NOT_JSON),
    "text that is no UTF-8": (file(b'{"\xff":1}'), NOT_JSON),
    "overlong UTF-8": (file(b'{"\xc0\xaf":1}'), NOT_JSON),
    "UTF-16": (file('{"a":1}'.encode("utf-16-le")), NOT_JSON),
    "NaN": (file(b'{"w":NaN}'), NOT_JSON),
    "Infinity": (file(b'{"w":-Infinity}'), NOT_JSON),
    "100,000 levels": (file(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ""),
    "two objects": (file(b"{}{}"), NOT_JSON),
    "a list instead of an object": (file(b"[{}]"), "must be a JSON object"),
    "a number instead of an object": (file(b"123"), "must be a JSON object"),
    "single quotes": (file(b"{'w':1}"), NOT_JSON),
    "a comma too many": (file(b'{"w":1,}'), NOT_JSON),
    "a comment": (file(b'{"w":1/*x*/}'), NOT_JSON),
    "metadata that is a list": (file({"__metadata__": ["x"]}), "map strings"),
    "metadata with a number": (file({"__metadata__": {"x": 1}}), "map strings"),
    "metadata with an object": (file({"__metadata__": {"x": {"y": "z"}}}), "map strings"),
    "3,000 empty tensors, then a lie": (
        file({**{f"{n}": one(shape=[0], data_offsets=[0, 0])["w"] for n in range(3_000)}, **one(shape=[3])}, DATA),
        "needs 12 bytes",
    ),
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that the first load imports."""
    path = tmp_path_factory.mktemp("warm") / "model"
    write_model_file(path, tree_of({"w": np.zeros(3), "n": 1}), structure={}, format="x")
    read_model_file(path).load()
    path.write_bytes(file(one(), DATA))
    read_all(path)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_header_that_lies_is_refused(attack: str, tmp_path: Path) -> None:
    data, words = ATTACKS[attack]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with watched(tmp_path, most_seconds=1), pytest.raises(CorruptionError) as caught:
        read_model_file(path)
    assert caught.value.file == str(path)
    assert words in str(caught.value)
    with pytest.raises((CorruptionError, UnsupportedError)):
        read_all(path)  # whatever it is taken for: the first time imports what reads that
    with watched(tmp_path, most_seconds=1), pytest.raises((CorruptionError, UnsupportedError)):
        read_all(path)


@pytest.mark.usefixtures("warm")
def test_a_sparse_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as sparse:
        sparse.write((100_000_001).to_bytes(8, "little") + b"{")
        sparse.truncate(200_000_000)
    with watched(tmp_path, most_seconds=1), pytest.raises(CorruptionError, match="cut short"):
        read_model_file(path)


@pytest.mark.usefixtures("warm")
def test_a_terabyte_in_a_few_bytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    size = 1 << 40
    path.write_bytes(file(one(shape=[size // 4], data_offsets=[0, size]), DATA))
    with watched(tmp_path, most_seconds=1), pytest.raises(CorruptionError, match="size is wrong"):
        read_all(path)


def test_a_file_that_ends_with_its_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").write_bytes(file({}))
    read_all(tmp_path / "empty.safetensors")
