"""FORMAT.md names what is written: every field in its order, every dtype, every limit."""

from __future__ import annotations

import re

import msgspec
import pytest
from tests.golden.make import HERE

from safepoint import limits
from safepoint.repository.model_file import ModelDocument
from safepoint.repository.schema import (
    BlockDocument,
    FormatDocument,
    ManifestDocument,
    ManifestReference,
    MarkDocument,
    MovedDocument,
    PackDocument,
    ShardDocument,
    SnapshotDocument,
    TensorDocument,
    TotalsDocument,
)
from safepoint.tree import DTYPES

TEXT = (HERE.parents[1] / "FORMAT.md").read_text()


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def fields(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize(
    ("title", "kind"),
    [("Snapshot", SnapshotDocument), ("Mark", MarkDocument), ("Manifest", ManifestDocument), ("Moved", MovedDocument)],
)
def test_a_table_has_every_field_in_the_order_in_which_it_is_written(title: str, kind: type[msgspec.Struct]) -> None:
    rows = re.findall(r"^\| (`.*?`) \|", section(title), re.MULTILINE)
    assert [field for row in rows for field in re.findall(r"`(\w+)`", row)] == fields(kind)


@pytest.mark.parametrize("kind", [ManifestReference, TotalsDocument, PackDocument, ShardDocument, ModelDocument])
def test_smaller_objects_are_spelled_out(kind: type[msgspec.Struct]) -> None:
    assert "{" + ", ".join(f'"{name}"' for name in fields(kind)) + "}" in TEXT.replace("\n", " ")


def test_what_is_special_is_spelled_out() -> None:
    assert "[" + ", ".join(fields(BlockDocument)) + "]" in TEXT
    assert fields(FormatDocument) == re.findall(r'"(\w+)":', re.findall(r'{"format":"safepoint".*?}', TEXT)[0])
    plain, optional = fields(TensorDocument)[:4], fields(TensorDocument)[4:]
    words = "{" + ", ".join(f'"{name}"' for name in plain) + "}`, with " + " and ".join(f'`"{n}"`' for n in optional)
    assert words in section("Manifest")


def test_every_dtype_is_listed_and_no_other() -> None:
    listed = re.findall(r"`(\w+)`", section("Dtypes").rpartition("\n\n`")[2].join(["`", ""]))
    assert sorted(listed) == sorted(DTYPES)


def test_every_limit_is_in_the_table() -> None:
    table = section("Limits")
    for name, value in vars(limits).items():
        if name.startswith("MAX_"):
            spelled = [f"{value:,}", str(value), f"{value >> 30} GiB", f"{value >> 20} MiB", f"{value >> 10} KiB"]
            assert any(word in table for word in [*spelled, f"2^{value.bit_length() - 1}"]), name
