"""Hostile folders of distributed checkpoints: `.metadata` that calls, places elsewhere, parts that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tests.attacks.test_pytorch import CALLS, archive, number, numbers, proto, tensor, text
from tests.attacks.watching import read_all, refused

import safepoint

MODULE = b"ctorch.distributed.checkpoint."


def record(module: bytes, name: bytes, **fields: bytes) -> bytes:
    state = b"}(" + b"".join(text(key) + value for key, value in fields.items()) + b"u"
    return MODULE + module + b"\n" + name + b"\n)\x81" + state + b"b"


def metadata(*, path: str = "__0_0.distcp", sizes: list[int] | None = None, offset: int = 0, length: int | None = None,
             extra: bytes = b"", part: Path) -> bytes:  # fmt: skip
    sizes = [4] if sizes is None else sizes
    size = part.stat().st_size if length is None else length
    where = b"ctorch\nSize\n(" + numbers([0]) + b"tR"
    chunk = record(b"metadata", b"ChunkStorageMetadata", offsets=where, sizes=numbers(sizes))
    properties = record(b"metadata", b"TensorProperties", dtype=b"ctorch\nfloat32\n")
    described = record(
        b"metadata", b"TensorStorageMetadata", properties=properties, size=numbers(sizes), chunks=b"](" + chunk + b"e"
    )
    key = record(b"metadata", b"MetadataIndex", fqn=text("w"), offset=where, index=number(0))
    place = record(b"filesystem", b"_StorageInfo", relative_path=text(path), offset=number(offset), length=number(size))
    return proto(
        record(
            b"metadata", b"Metadata",
            state_dict_metadata=b"}(" + text("w") + described + extra + b"u",
            storage_data=b"}(" + key + place + b"u",
        )
    )  # fmt: skip


@pytest.fixture
def part(tmp_path: Path) -> Path:
    folder = tmp_path / "ck"
    folder.mkdir()
    return archive(proto(tensor([4], [1])), folder / "__0_0.distcp")


def test_the_folder_that_the_attacks_are_made_from_is_read(part: Path) -> None:
    (part.parent / ".metadata").write_bytes(metadata(part=part))
    read_all(part.parent)


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret", "link", "", "."])
def test_places_are_beneath_the_folder(place: str, part: Path) -> None:
    (part.parent.parent / "secret").write_bytes(part.read_bytes())
    (part.parent / "link").symlink_to("../secret")
    (part.parent / ".metadata").write_bytes(metadata(part=part, path=place))
    refused(part.parent, safepoint.CorruptionError, "outside itself")


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [1 << 40]}, {"sizes": [-4]}, {"sizes": [1 << 30, 1 << 30]}, {"offset": -1}, {"offset": 10},
        {"length": 1 << 60}, {"length": 10}, {"sizes": [5]}, {"extra": text("w") + b"N"},
    ],
    ids=str,
)  # fmt: skip
def test_places_and_parts_are_what_they_say(change: dict[str, object], part: Path) -> None:
    (part.parent / ".metadata").write_bytes(metadata(part=part, **change))  # type: ignore[arg-type]
    refused(part.parent, safepoint.SafepointError)


@pytest.mark.parametrize("body", [*CALLS.values(), pickle.dumps({"a": 1}, 4), proto(b"N"), b""])
def test_metadata_that_calls_is_refused(body: bytes, part: Path) -> None:
    (part.parent / ".metadata").write_bytes(body)
    refused(part.parent, (safepoint.UntrustedError, safepoint.CorruptionError, safepoint.UnsupportedError))
