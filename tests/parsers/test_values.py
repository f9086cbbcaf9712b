"""`codec.values`: plain values and skeletons as JSON, exactly, and nothing that was not written so."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest

from safepoint.codec import decode_node, decode_value, encode_node, encode_value
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.limits import MAX_DEPTH
from safepoint.tree import Branch, LeafRef, Node

WRITTEN: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (0, 0),
    (-(1 << 63), -(1 << 63)),
    ((1 << 63) - 1, (1 << 63) - 1),
    (1 << 63, {"int": "0x8000000000000000"}),
    (-(1 << 63) - 1, {"int": "-0x8000000000000001"}),
    (1.5, 1.5),
    (math.inf, {"float": "inf"}),
    (-math.inf, {"float": "-inf"}),
    (1 + 2j, {"complex": [1.0, 2.0]}),
    (complex(0, math.inf), {"complex": [0.0, {"float": "inf"}]}),
    (b"\0\xff", {"bytes": "AP8="}),
    ("größe", "größe"),
    ("a\ud800", {"str": base64.b64encode(b"a\xed\xa0\x80").decode()}),
]


@pytest.mark.parametrize(("value", "form"), WRITTEN, ids=repr)
def test_a_value_has_one_form_and_comes_back_from_it(value: Any, form: Any) -> None:
    assert encode_value(value) == form
    assert type(encode_value(value)) is type(form)
    found = decode_value(json.loads(json.dumps(form)))
    assert found == value
    assert type(found) is type(value)


def test_nan_comes_back() -> None:
    assert encode_value(math.nan) == {"float": "nan"}
    found = decode_value({"float": "nan"})
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [1],
        {},
        {"int": "0x1", "float": "nan"},
        {"int": "12"},
        {"int": "x"},
        {"int": 3},
        {"float": "1.5"},
        {"float": 1.5},
        {"complex": [1.0]},
        {"complex": [1.0, 2.0, 3.0]},
        {"complex": 1},
        {"complex": ["a", 1.0]},
        {"bytes": "?"},
        {"bytes": 3},
        {"str": "?"},
        {"str": "/w=="},
    ],
)
def test_what_was_never_written_is_damage(data: Any) -> None:
    with pytest.raises(CorruptionError, match="not a value"):
        decode_value(data)


def test_a_tag_of_a_later_version() -> None:
    with pytest.raises(UnsupportedError, match="values tagged 'decimal' are not known to this version"):
        decode_value({"decimal": "1"})


NODES: list[tuple[Node, Any]] = [
    (LeafRef("w"), ["w"]),
    (LeafRef("w", "torch"), ["w", "torch"]),
    (Branch("dict"), {"kind": "dict"}),
    (Branch("list", (), (LeafRef("0"),)), {"kind": "list", "children": [["0"]]}),
    (
        Branch("dict", ("a", 1 << 70), (LeafRef("a"), LeafRef("b"))),
        {"kind": "dict", "keys": ["a", {"int": hex(1 << 70)}], "children": [["a"], ["b"]]},
    ),
    (Branch("x", ("k",)), {"kind": "x", "keys": ["k"]}),
]


@pytest.mark.parametrize(("node", "form"), NODES, ids=repr)
def test_a_skeleton_has_one_form_and_comes_back_from_it(node: Node, form: Any) -> None:
    assert encode_node(node) == form
    assert decode_node(json.loads(json.dumps(form))) == node


@pytest.mark.parametrize(
    "data",
    [
        None,
        1,
        "w",
        [],
        [1],
        ["a", 1],
        ["a", "b", "c"],
        {},
        {"kind": 1},
        {"kind": "dict", "more": 1},
        {"kind": "dict", "keys": 1},
        {"kind": "dict", "children": 1},
        {"kind": "dict", "children": [1]},
        {"keys": []},
    ],
)
def test_a_skeleton_that_was_never_written_is_damage(data: Any) -> None:
    with pytest.raises(CorruptionError, match="not a skeleton"):
        decode_node(data)


def test_skeletons_have_a_depth() -> None:
    def nested(depth: int) -> Any:
        data: Any = ["w"]
        for _ in range(depth):
            data = {"kind": "list", "children": [data]}
        return data

    assert isinstance(decode_node(nested(MAX_DEPTH)), Branch)
    with pytest.raises(CorruptionError, match="nested too deep"):
        decode_node(nested(MAX_DEPTH + 1))
