"""`formats.pickles`: what pickles of plain values hold, opcode by opcode; all else is refused by its name."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any

import pytest

from safepoint.errors import CorruptionError, UntrustedError
from safepoint.formats import pickles
from safepoint.formats.cursor import Cursor
from safepoint.formats.pickles import Build, Global, Pairs, Record, Unpickler

THING = Global("mod", "Thing")
NAMES: Mapping[Global, Build] = {THING: lambda arguments: Record(THING, arguments)}
NAMED = b"cmod\nThing\n"


def load(data: bytes, **options: Any) -> Any:
    cursor = Cursor(lambda start, length: data[start : start + length], 0, len(data), file="p")
    return Unpickler(cursor, NAMES, **options).load()


def plain(value: Any) -> Any:
    """Pairs as the dictionaries that they were."""
    if isinstance(value, Pairs):
        return {plain(key): plain(item) for key, item in value.pairs}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


VALUES = [
    None,
    True,
    False,
    0,
    1,
    255,
    256,
    65535,
    65536,
    -1,
    -(1 << 31),
    1 << 31,
    1 << 200,
    -(1 << 200),
    1.5,
    -0.0,
    "",
    "größe",
    "\ud800",
    "x" * 300,
    b"",
    b"\xff\0",
    b"y" * 300,
    bytearray(b"ab"),
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    [],
    [1],
    [1, [2, (3,)]],
    {},
    {"a": 1},
    {"a": {"b": [None]}, 3: "c"},
    ["same"] * 3,
    list(range(300)),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    if isinstance(value, bytes | bytearray) and (protocol < 3 or (isinstance(value, bytearray) and protocol < 5)):
        with pytest.raises(UntrustedError, match=r"_codecs\.encode|bytes|bytearray"):  # as older protocols write them
            load(pickle.dumps(value, protocol))
        return
    found = load(pickle.dumps(value, protocol))
    assert plain(found) == value
    assert type(plain(found)) is (bytes if isinstance(value, bytearray) else type(value))


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_one_object_stays_one(protocol: int) -> None:
    inner: list[Any] = [1]
    first, second, pairs = load(pickle.dumps([inner, inner, {"x": inner}], protocol))
    assert first is second is pairs.get("x")


def test_sets_are_lists_in_the_order_of_the_file() -> None:
    assert load(pickle.dumps({7}, 4)) == [7]
    assert load(b"\x8f(K\1K\2\x90.") == [1, 2]
    assert load(b"(K\1K\2\x91.") == [1, 2]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"T\3\0\0\0ab\xe9.", "ab\xe9"),
        (b"U\2\xe9b.", "\xe9b"),
        (b"(K\1K\2l.", [1, 2]),
        (b"(K\1K\2t.", (1, 2)),
        (b"]K\5a.", [5]),
        (b"](K\1K\2e.", [1, 2]),
        (b"}K\1K\2s.", {1: 2}),
        (b"}(K\1K\2K\3K\4u.", {1: 2, 3: 4}),
        (b"\x8b\2\0\0\0\xff\x7f.", 32767),
        (b"\x8a\0.", 0),
        (b"M\1\2.", 513),
        (b"J\xff\xff\xff\xff.", -1),
        (b"]q\0K\1ah\0\x86.", ([1], [1])),
        (b"]r\0\0\0\0K\1aj\0\0\0\0\x86.", ([1], [1])),
        (b"K\1q\5K\2h\5\x87.".replace(b"\x87", b"\x86\x86"), (1, (2, 1))),
        (b"K\1q\0K\2q\0h\0\x86\x86.", (1, (2, 2))),
        (b"\x80\2\x95\1\0\0\0\0\0\0\0N.", None),
    ],
)
def test_opcodes_that_today_s_writers_do_not_use(data: bytes, value: Any) -> None:
    assert plain(load(data)) == value


def test_a_name_that_is_known_makes_what_our_table_says() -> None:
    made = load(NAMED + b"K\1\x85R}X\1\0\0\0aK\2sb.")
    assert (made.name, made.arguments, made.state.get("a")) == (THING, (1,), 2)
    assert load(NAMED + b")\x81.").arguments == ()
    assert load(b"\x8c\3mod\x8c\5Thing\x93)R.").name == THING
    assert made.state.get("b") is None


def test_attributes_of_a_dictionary_are_left_out() -> None:
    assert plain(load(b"}K\1K\2s}b.")) == {1: 2}


def test_a_name_may_stand_for_itself_where_it_is_inert() -> None:
    dtype = Global("torch", "float32")
    assert load(b"ctorch\nfloat32\n.", inert=lambda name: name == dtype) == dtype
    with pytest.raises(
        UntrustedError, match=r"p names torch\.float32, which is no tensor and no plain value; nothing was run"
    ):
        load(b"ctorch\nfloat32\n)R.", inert=lambda name: name == dtype)


@pytest.mark.parametrize("data", [b"cos\nsystem\n.", b"\x8c\2os\x8c\6system\x93.", b"cos\nsystem\nX\1\0\0\0a\x85R."])
def test_a_name_that_is_not_known_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError, match=r"names os\.system") as caught:
        load(data)
    assert caught.value.found == "os.system"


def test_persistent_ids_are_for_who_asks_for_them() -> None:
    assert load(b"X\1\0\0\0aQ.", persistent=lambda found: [found]) == ["a"]
    with pytest.raises(UntrustedError, match="refers to something outside its pickle"):
        load(b"X\1\0\0\0aQ.")


@pytest.mark.parametrize("code", pickles._NOT_READ)
def test_an_opcode_that_builds_no_plain_value_is_refused_by_its_name(code: int) -> None:
    with pytest.raises(UntrustedError, match="does more than build tensors") as caught:
        load(b"N" + bytes([code]) + b"0\n.")
    assert caught.value.found == f"opcode {pickles._NOT_READ[code]}"


def test_the_names_of_refused_opcodes_are_those_of_the_standard_library() -> None:
    assert {name: bytes([code]) for code, name in pickles._NOT_READ.items()} == {
        name: getattr(pickle, name) for name in pickles._NOT_READ.values()
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"NN.",
        b"N",
        b"\xff.",
        b"(.",
        b"(a.",
        b"a.",
        b"K\1K\2a.",
        b"]a.",
        b"](a.",
        b"t.",
        b"K\1t.",
        b"NK\1s.",
        b"}K\1s.",
        b"](K\1K\2u.",
        b"}(K\1u.",
        b"}(K\1e.",
        b"\x85.",
        b"(\x85.",
        b"K\1(\x86.",
        b"q\0.",
        b"(q\0.",
        b"h\0.",
        b"K\1q\0h\1.",
        b"K\1q\1h\0.",
        b"K\1q\1h\2.",
        b"K\1K\2\x93.",
        b"\x8c\1aK\2\x93.",
        b"K\2\x8c\1a\x93.",
        b"K\1)R.",
        NAMED + b"K\1R.",
        b"]K\1b.",
        b"Q.",
        b"b.",
        b"X\xff\xff\xff\x7fa.",
        b"T\xff\xff\xff\xffa.",
        b"\x8d" + struct.pack("<Q", 1 << 63) + b".",
        b"X\1\0\0\0\xff.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x8b" + struct.pack("<i", 1025) + bytes(1025) + b".",
        b"K",
        b"\x80",
        b"\x95\0\0.",
        b"cmod\n.",
    ],
)
def test_what_is_no_pickle_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptionError, match=r"^p is damaged") as caught:
        load(data, persistent=lambda found: found)
    assert caught.value.file == "p"


def test_lengths_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (pickles._MAX_TEXT_BYTES, pickles._MAX_INTEGER_BYTES) == (64 << 20, 1024)
    assert load(b"\x8b" + struct.pack("<i", 1024) + bytes(1024) + b".") == 0
    monkeypatch.setattr(pickles, "_MAX_TEXT_BYTES", 3)
    assert load(b"X\3\0\0\0abc.") == "abc"
    with pytest.raises(CorruptionError) as caught:
        load(b"X\4\0\0\0abcd.")
    assert caught.value.found == "text of 4 bytes"


def test_long_names_are_cut_in_messages() -> None:
    with pytest.raises(UntrustedError) as caught:
        load(b"c" + b"m" * 400 + b"\nx\n.")
    assert len(caught.value.message) < 250
    assert caught.value.found == "m" * 200
