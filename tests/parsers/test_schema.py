"""`repository.schema`: documents as they are on disk; what is too large, too new or no document is told apart."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from safepoint.codec import seal
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository import schema
from safepoint.repository.schema import (
    BlockDocument,
    FormatDocument,
    ManifestDocument,
    MarkDocument,
    MovedDocument,
    PackDocument,
    ShardDocument,
    TensorDocument,
    decode,
    decode_sealed,
    encode,
    encode_sealed,
)

ID, PACK = "a" * 32, "b" * 24
FORMAT = FormatDocument("safepoint", 1, ID)
BLOCK = BlockDocument(0, 1, 2, "d", "c")
TENSOR = TensorDocument("w", "uint8", [2], [ShardDocument([0], [2], [BLOCK])])
MANIFEST = ManifestDocument(1, [PackDocument(PACK, 4, 2, "d")], {"kind": "dict"}, [("v", 1)], [TENSOR])
MARK = MarkDocument(1, ID, 3, 0, "t", ["x"])
MOVED = MovedDocument(1, ID, PACK, 0, "t")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (FORMAT, f'{{"format":"safepoint","version":1,"id":"{ID}"}}'),
        (
            TENSOR,
            '{"name":"w","dtype":"uint8","shape":[2],"shards":[{"offset":[0],"shape":[2],"blocks":[[0,1,2,"d","c"]]}]}',
        ),
        (MARK, f'{{"version":1,"repository":"{ID}","number":3,"k":0,"time":"t","tags":["x"]}}'),
        (MOVED, f'{{"version":1,"repository":"{ID}","pack":"{PACK}","k":0,"time":"t"}}'),
    ],
)
def test_a_document_is_canonical_json(document: msgspec.Struct, text: str) -> None:
    assert encode(document) == text.encode()
    assert msgspec.json.decode(text, type=type(document)) == document


@pytest.mark.parametrize("document", [FORMAT, MANIFEST, MARK, MOVED])
def test_a_document_comes_back(document: Any) -> None:
    assert decode(encode(document), type(document), file="f") == document
    assert decode_sealed(encode_sealed(document), type(document), file="f") == document


def test_a_newer_format_is_told() -> None:
    data = encode(FORMAT).replace(b'"version":1', b'"version":2')
    with pytest.raises(UnsupportedError, match="f was written in a newer format") as caught:
        decode(data, FormatDocument, file="f")
    assert caught.value.found == "version 2"
    newer = json.dumps({"version": 2, "format": 7, "unknown": []}).encode()  # whatever it may hold
    with pytest.raises(UnsupportedError, match="newer format"):
        decode(newer, FormatDocument, file="f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"{",
        b"\xff",
        b"null",
        encode(FORMAT).replace(b'"version":1', b'"version":0'),
        encode(FORMAT).replace(b"safepoint", b"savepoint"),
        encode(FORMAT).replace(ID.encode(), b"A" * 32),
        encode(FORMAT).replace(ID.encode(), b"a" * 31),
        encode(FORMAT).replace(ID.encode(), b"a" * 32 + b"\\n"),
    ],
)
def test_what_is_no_such_document_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="f is damaged") as caught:
        decode(data, FormatDocument, file="f")
    assert (caught.value.file, caught.value.expected) == ("f", "FormatDocument")


@pytest.mark.parametrize(("field", "value"), [("number", -1), ("k", -1), ("number", 1.5), ("tags", "x"), ("time", 3)])
def test_counts_are_counts(field: str, value: Any) -> None:
    data = json.dumps({**json.loads(encode(MARK)), field: value}).encode()
    with pytest.raises(CorruptionError, match="f is damaged"):
        decode(data, MarkDocument, file="f")


@pytest.mark.parametrize(
    "body", [encode(FORMAT)[:-1] + b',"version":1}', b"nothing", b"\xff\xfe{\0}\0", b"[" * 100_000]
)
def test_under_a_right_seal_there_is_json_that_reads_one_way(body: bytes) -> None:
    with pytest.raises(CorruptionError, match="f is damaged") as caught:
        decode_sealed(seal(body), FormatDocument, file="f")
    assert caught.value.expected == "JSON"


def test_a_seal_that_does_not_fit() -> None:
    data = bytearray(encode_sealed(FORMAT))
    data[-20] ^= 1
    with pytest.raises(CorruptionError, match="f is damaged"):
        decode_sealed(bytes(data), FormatDocument, file="f")


def test_what_json_cannot_hold_is_told() -> None:
    document = MarkDocument(1, ID, 3, 0, "a\ud800", [])
    with pytest.raises(UnsupportedError, match="cannot be kept in a JSON document"):
        encode(document)


def test_a_sealed_document_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(encode_sealed(MARK))
    monkeypatch.setattr(schema, "MAX_DOCUMENT_BYTES", size)
    assert len(encode_sealed(MARK)) == size
    monkeypatch.setattr(schema, "MAX_DOCUMENT_BYTES", size - 1)
    with pytest.raises(UnsupportedError, match="a MarkDocument is too large") as caught:
        encode_sealed(MARK)
    assert (caught.value.expected, caught.value.found) == (f"at most {size - 1:,} bytes", f"{size:,} bytes")
