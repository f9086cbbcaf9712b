"""`formats.sstable`: what is in a table comes out in order; every way in which one can lie is told apart."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from tests.attacks.test_onnx import varint
from tests.attacks.test_tensorflow import block, crc, table

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats import sstable


@dataclass
class File:
    """Bytes as the reader of a table sees them."""

    data: bytes
    path: str = "t"

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def read(self, start: int, length: int) -> bytes:
        return self.data[start : start + length]


def entries(data: bytes) -> list[tuple[bytes, bytes]]:
    return list(sstable.entries(File(data)))  # type: ignore[arg-type]


def sealed(body: bytes, kind: bytes = b"\0") -> bytes:
    return body + kind + struct.pack("<I", crc(body + kind))


def raw(*keys: tuple[int, bytes, bytes], restarts: tuple[int, ...] = (0,)) -> bytes:
    """A block of (bytes shared with the key before, rest of the key, value)."""
    body = b"".join(varint(shared) + varint(len(k)) + varint(len(v)) + k + v for shared, k, v in keys)
    return sealed(body + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)))


def test_entries_come_in_order() -> None:
    pairs = [(b"", b"header"), (b"a", b""), (b"ab", b"x" * 300), (b"b", b"2")]
    assert entries(table(pairs)) == pairs
    assert entries(table([])) == []


def test_keys_share_what_they_begin_with() -> None:
    data = raw((0, b"layer/a", b"1"), (6, b"b", b"2"), (7, b"c", b"3"), restarts=(0, 5, 9))
    assert entries(table([], data=data)) == [(b"layer/a", b"1"), (b"layer/b", b"2"), (b"layer/bc", b"3")]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "too short"),
        (bytes(47), "too short"),
        (bytes(48), "does not end like one"),
        (table([(b"a", b"1")])[:-1] + b"\0", "does not end like one"),
        (table([(b"b", b""), (b"a", b"")]), "not in order"),
        (table([(b"a", b""), (b"a", b"")]), "not in order"),
        (table([], data=raw((0, b"a", b""), (2, b"b", b""))), "shares more than there is"),
        (table([], data=sealed(struct.pack("<I", 1))), "restarts alone"),
        (table([], data=sealed(struct.pack("<I", 1 << 30))), "restarts alone"),
        (table([(b"a", b"")], handle=varint(0) + varint(3)), "outside the file"),
        (table([(b"a", b"")], handle=varint(0) + varint(1 << 40)), "outside the file"),
        (table([(b"a", b"")], handle=varint(1 << 40) + varint(8)), "outside the file"),
        (table([], data=block([(b"a", b"")])[:-1] + b"\0"), "checksum"),
        (table([], data=raw((0, b"a", b""))[:-5] + b"\0" + b"\1\2\3\4"), "checksum"),
    ],
)
def test_a_table_that_lies_is_told_what_is_wrong(data: bytes, what: str) -> None:
    with pytest.raises(CorruptionError, match=f"t is no sound table: .*{what}") as caught:
        entries(data)
    assert caught.value.file == "t"


def test_a_key_that_does_not_end_is_damage() -> None:
    body = varint(0) + varint(100) + varint(0) + b"a" + struct.pack("<II", 0, 1)
    with pytest.raises(CorruptionError, match="ends early"):
        entries(table([], data=sealed(body)))


def test_compressed_blocks_are_refused() -> None:
    body = block([(b"a", b"1")])[:-5]
    with pytest.raises(UnsupportedError, match="t has compressed blocks"):
        entries(table([], data=sealed(body, b"\1")))


def test_blocks_and_entries_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (sstable._MAX_BLOCK_BYTES, sstable._MAX_ENTRIES) == (256 << 20, 5_000_000)
    data = table([(b"a", b"1"), (b"b", b"2")])
    monkeypatch.setattr(sstable, "_MAX_ENTRIES", 2)
    assert len(entries(data)) == 2
    monkeypatch.setattr(sstable, "_MAX_ENTRIES", 1)
    with pytest.raises(CorruptionError, match="too many"):
        entries(data)
    length = len(block([(b"a", b"1"), (b"b", b"2")])) - 5
    monkeypatch.undo()
    monkeypatch.setattr(sstable, "_MAX_BLOCK_BYTES", length)
    assert len(entries(data)) == 2
    monkeypatch.setattr(sstable, "_MAX_BLOCK_BYTES", length - 1)
    with pytest.raises(CorruptionError, match="outside the file"):
        entries(data)
