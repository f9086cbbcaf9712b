"""Hostile pickles and zip files: refused by name, in no time, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.attacks.watching import read_all, refused

import safepoint

MARK, STOP = b"(", b"."
FLOAT = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: list[int]) -> bytes:
    return MARK + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: bytes = FLOAT) -> bytes:
    return MARK + text("storage") + kind + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(shape: list[int], stride: list[int], offset: int = 0, store: bytes | None = None) -> bytes:
    arguments = (store or storage()) + number(offset) + numbers(shape) + numbers(stride) + b"\x89N"
    return REBUILD + MARK + arguments + b"tR"


def proto(body: bytes) -> bytes:
    return b"\x80\x02" + body + STOP


def archive(body: bytes, path: Path, records: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", body)
        for name, data in (records if records is not None else {"0": b"\0" * 16}).items():
            file.writestr(f"x/data/{name}", data)
    return path


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/safepoint-was-run",)


CALLS = {
    "os.system": pickle.dumps({"a": Evil()}, 2),
    "os.system by its stack name": pickle.dumps({"a": Evil()}, 4),
    "builtins.eval": proto(b"cbuiltins\neval\n(" + text("1") + b"tR"),
    "builtins.getattr": proto(b"cbuiltins\ngetattr\n(" + REBUILD + text("__globals__") + b"tR"),
    "a class with a state": proto(b"ctorch\nTensor\n)\x81}b"),
    "a dotted name": proto(b"\x8c\x05torch\x8c\x0b_utils.eval\x93)R"),
    "numpy's loader": proto(b"cnumpy\nload\n(" + text("/etc/passwd") + b"tR"),
    "torch.load": proto(b"ctorch.serialization\nload\n(" + text("/etc/passwd") + b"tR"),
    "an inner function of a rebuild": proto(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n)NtR"
    ),
    "an extension": proto(b"\x82\x01"),
    "opcode INST": proto(b"(ios\nsystem\n"),
    "objects of NumPy": proto(
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01tcnumpy\ndtype\n("
        + text("O8") + b"\x89\x88tR\x89]tb"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrap", [archive, lambda body, path: (path.write_bytes(body), path)[1]], ids=["zip", "plain"])
@pytest.mark.parametrize("body", CALLS.values(), ids=CALLS)
def test_nothing_is_called(body: bytes, wrap: Callable[[bytes, Path], Path], tmp_path: Path) -> None:
    path = wrap(body, tmp_path / "x.pt")
    refused(path, (safepoint.UntrustedError, safepoint.UnsupportedError, safepoint.CorruptionError))
    assert not Path("/tmp/safepoint-was-run").exists()


def test_what_would_be_called_is_named(tmp_path: Path) -> None:
    for number, name in enumerate(["os.system", "os.system by its stack name"]):
        refused(archive(CALLS[name], tmp_path / f"{number}.pt"), safepoint.UntrustedError, "system")


VIEWS = {
    "outside": tensor([5], [1]),
    "an offset outside": tensor([1], [1], 4),
    "a negative stride": tensor([2], [-1], 3),
    "a negative offset": tensor([2], [1], -1),
    "a negative size": tensor([-2], [1]),
    "a stride too many": tensor([2], [1, 1]),
    "2**63 elements": tensor([1 << 62, 4], [0, 1]),
    "2**48 elements by no stride": tensor([1 << 24, 1 << 24], [0, 0]),
    "70 axes": tensor([1] * 70, [1] * 70),
    "a storage that is none": REBUILD + MARK + text("x") + number(0) + numbers([1]) + numbers([1]) + b"\x89NtR",
    "a storage of another size": tensor([4], [1], store=storage(count=5)),
    "a storage that is missing": tensor([4], [1], store=storage(key="../../etc/passwd")),
    "a negative storage": tensor([4], [1], store=storage(count=-4)),
    "a quantized storage": tensor([4], [1], store=storage(kind=b"ctorch\nQInt8Storage\n")),
    "a persistent id of another kind": text("file:///etc/passwd") + b"Q",
}


@pytest.mark.parametrize("body", VIEWS.values(), ids=VIEWS)
def test_no_view_leaves_its_storage(body: bytes, tmp_path: Path) -> None:
    refused(archive(proto(body), tmp_path / "x.pt"), safepoint.SafepointError)


def laughs() -> bytes:
    body = b"]q\x00"
    for _ in range(40):
        body += b"](" + b"h\x00" * 50 + b"eq\x00"
    return proto(body)


STREAMS = {
    "cut short": b"\x80\x02}",
    "empty stack": proto(b""),
    "a text of 4 GB": proto(b"X\xff\xff\xff\xff"),
    "a text of 2**63": proto(b"\x8d" + b"\xff" * 8),
    "an integer of a megabyte": proto(b"\x8b\x00\x00\x10\x00" + b"1" * 0x100000),
    "a million marks": proto(MARK * 1_000_000),
    "nested 100,000 deep": proto(b"]" * 100_000 + b"a" * 99_999),
    "a list that holds itself": proto(b"]q\x00h\x00a"),
    "a billion laughs": laughs(),
    "a dictionary as a key": proto(b"}(}K\x01u"),
    "a memo of nothing": proto(b"hZ"),
    "a mark in a tuple": proto(b"(\x85"),
    "append to a number": proto(b"K\x01K\x02a"),
    "pairs added to a list": proto(b"](" + text("a") + b"K\x01u"),
    "a frame that lies": proto(b"\x95" + b"\xff" * 8),
    "one name for two": proto(b"}(" + text("1") + b"K\x01K\x01K\x02u"),
    "a name of two megabytes": b"\x80\x02c" + b"a" * 2_000_000,
}


@pytest.mark.parametrize("body", STREAMS.values(), ids=STREAMS)
def test_a_stream_that_is_no_pickle_of_data_is_refused(body: bytes, tmp_path: Path) -> None:
    refused(archive(body, tmp_path / "x.pt"), safepoint.SafepointError)


def test_a_thousand_views_of_one_storage_are_not_a_thousand_times_its_size(tmp_path: Path) -> None:
    size = 16 << 20
    view = tensor([size // 4], [1], store=storage(count=size // 4))
    body = proto(b"](" + view * 200 + b"e")
    refused(archive(body, tmp_path / "x.pt", {"0": b"\0" * size}), safepoint.CorruptionError, "again and again")


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", proto(tensor([4], [1])))
        file.writestr("x/data/0", b"\1" * 16)
    return buffer.getvalue()


def replaced(old: bytes, new: bytes, *, last: bool = False) -> bytes:
    data = zip_bytes()
    at = data.rindex(old) if last else data.index(old)
    return data[:at] + new + data[at + len(old) :]


ZIPS = {
    "a local name that differs": replaced(b"x/data/0", b"x/data/1"),
    "a central name that differs": replaced(b"x/data/0", b"x/data/1", last=True),
    "a central size that differs": replaced(struct.pack("<II", 16, 16), struct.pack("<II", 12, 12), last=True),
    "data that differs from its checksum": replaced(b"\1" * 16, b"\1" * 15 + b"\2"),
    "bytes in front": b"#!/bin/sh\n" + zip_bytes(),
    "bytes behind": zip_bytes() + b"x",
    "a comment": zip_bytes()[:-2] + b"\5\0hello",
    "an encrypted flag": replaced(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00", last=True
    ),
    "cut short": zip_bytes()[:-30],
    "two directories": zip_bytes() + zip_bytes(),
    "more members than there are": replaced(struct.pack("<HH", 2, 2), struct.pack("<HH", 3, 3), last=True),
    "a bomb": b"",
}


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", proto(tensor([1 << 18], [1], store=storage(count=1 << 18))))
        file.writestr("x/data/0", b"\0" * (1 << 20))
    data = buffer.getvalue()
    return data.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 1 << 30))


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_file_that_can_be_read_in_two_ways_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(ZIPS[name] or bomb())
    refused(path, (safepoint.CorruptionError, safepoint.UnsupportedError))


def test_members_that_stand_twice_or_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", proto(b"}"))
        file.writestr("x/data.pk2", proto(b"]"))
    path.write_bytes(path.read_bytes().replace(b"data.pk2", b"data.pkl"))
    refused(path, safepoint.CorruptionError, "twice")
    data = zip_bytes()
    first, second = data.index(b"PK\x01\x02"), data.rindex(b"PK\x01\x02")
    header = bytearray(data)
    header[second + 42 : second + 46] = header[first + 42 : first + 46]  # both at the first one's header
    path.write_bytes(header)
    refused(path, safepoint.CorruptionError, "overlap|two different ways")


def legacy(body: bytes, order: bytes, data: bytes) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + body + order + data


ELEMENTS = (4).to_bytes(8, "little") + b"\0" * 16
SOUND = proto(tensor([4], [1], store=storage()[:-2] + b"NtQ"))
LEGACY = {
    "a storage that nothing names": legacy(proto(b"}"), pickle.dumps(["0"], 2), ELEMENTS),
    "a storage of another size": legacy(SOUND, pickle.dumps(["0"], 2), b"\5" + ELEMENTS[1:]),
    "bytes behind": legacy(
        proto(tensor([4], [1], store=storage()[:-2] + b"NtQ")), pickle.dumps(["0"], 2), ELEMENTS + b"x"
    ),
    "a storage twice": legacy(SOUND, pickle.dumps(["0", "0"], 2), ELEMENTS * 2),
    "a petabyte": legacy(
        proto(tensor([4], [1], store=storage(count=1 << 50)[:-2] + b"NtQ")),
        pickle.dumps(["0"], 2),
        (1 << 50).to_bytes(8, "little"),
    ),
    "a call": legacy(CALLS["os.system"], pickle.dumps([], 2), b""),
    "another protocol": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7, 2) + pickle.dumps({}, 2),
}


@pytest.mark.parametrize("data", LEGACY.values(), ids=LEGACY)
def test_a_hostile_file_of_before_zip(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    refused(path, safepoint.SafepointError)


def test_the_files_that_the_attacks_are_made_from_are_read(tmp_path: Path) -> None:
    """Each attack changes one thing of these."""
    read_all(archive(proto(tensor([2, 2], [1, 2])), tmp_path / "a.pt"))
    (tmp_path / "b.pt").write_bytes(zip_bytes())
    read_all(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(legacy(SOUND, pickle.dumps(["0"], 2), ELEMENTS))
    read_all(tmp_path / "c.pt")
