"""`repository.stored`: which blocks make up a tensor, which a save may use again, and how damage is named."""

from __future__ import annotations

import pytest

from safepoint.codec import BLOCK_BYTES
from safepoint.errors import CorruptionError, NotFoundError, UnsupportedError
from safepoint.limits import MAX_DIMENSION, MAX_RANK
from safepoint.repository.stored import (
    Block,
    KnownBlocks,
    Stored,
    check_blocks,
    check_extent,
    damaged,
    parse_spec,
    with_rows,
)
from safepoint.tree import TensorSpec


def block(pack: str = "p", offset: int = 0, length: int = 8, mark: str = "0") -> Block:
    return Block(pack, offset, length, "d" + mark, "c" + mark)


def stored(spec: TensorSpec, *blocks: Block) -> Stored:
    return Stored("w", spec, blocks)


SMALL = TensorSpec((4,), "uint8")
LARGE = TensorSpec((BLOCK_BYTES + 4,), "uint8")
TWO = (block(offset=8, length=BLOCK_BYTES), block(offset=0, length=4))


@pytest.mark.parametrize("shape", [(), (0,), (MAX_DIMENSION,), (1,) * MAX_RANK])
def test_shapes_that_can_be(shape: tuple[int, ...]) -> None:
    assert parse_spec(list(shape), "uint8", name="w", file="f") == TensorSpec(shape, "uint8")


@pytest.mark.parametrize("shape", [(MAX_DIMENSION + 1,), (-1,), (1,) * (MAX_RANK + 1), (2, -1)])
def test_shapes_that_cannot_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(CorruptionError, match="w has an impossible shape") as caught:
        parse_spec(shape, "uint8", name="w", file="f")
    assert (caught.value.file, caught.value.name) == ("f", "w")
    with pytest.raises(UnsupportedError, match="unknown dtype"):
        parse_spec((1,), "float7", name="w", file="f")


@pytest.mark.parametrize(
    ("tensor", "size"),
    [
        (stored(SMALL, block(length=4)), 4),
        (stored(SMALL, block(offset=96, length=4)), 100),
        (stored(LARGE, *TWO), BLOCK_BYTES + 8),
        (stored(TensorSpec((0,), "uint8")), 0),
        (stored(TensorSpec((BLOCK_BYTES,), "uint8"), block(length=BLOCK_BYTES)), BLOCK_BYTES),
    ],
)
def test_blocks_that_make_a_tensor_up(tensor: Stored, size: int) -> None:
    assert check_blocks(tensor, {"p": size}, file="f") is tensor


@pytest.mark.parametrize(
    ("tensor", "size"),
    [
        (stored(SMALL), 100),
        (stored(SMALL, block(length=3)), 100),
        (stored(SMALL, block(length=5)), 100),
        (stored(SMALL, block(offset=-1, length=4)), 100),
        (stored(SMALL, block(offset=97, length=4)), 100),
        (stored(SMALL, block("q", length=4)), 100),
        (stored(SMALL, block(length=2), block(length=2)), 100),
        (stored(TensorSpec((0,), "uint8"), block(length=0), block(length=0)), 100),
        (stored(LARGE, block(length=BLOCK_BYTES + 4)), 1 << 30),
        (stored(LARGE, TWO[0], block(length=5)), 1 << 30),
        (stored(LARGE, TWO[0], block(offset=-1, length=4)), 1 << 30),
        (stored(LARGE, TWO[0], block("q", length=4)), 1 << 30),
        (stored(LARGE, *TWO), BLOCK_BYTES + 7),
        (stored(LARGE, *TWO, block(length=0)), 1 << 30),
    ],
)
def test_blocks_that_do_not(tensor: Stored, size: int) -> None:
    with pytest.raises(CorruptionError, match="the blocks of w do not make it up") as caught:
        check_blocks(tensor, {"p": size}, file="f")
    assert (caught.value.file, caught.value.name) == ("f", "w")


def test_files_are_long_enough() -> None:
    asked = []

    def size_of(file: str) -> int:
        asked.append(file)
        if file == "gone.x":
            raise NotFoundError("no such file")
        return BLOCK_BYTES + 8

    def check(*tensors: Stored) -> None:
        check_extent(tensors, size_of, file_of=lambda pack: f"{pack}.x")

    check(stored(LARGE, *TWO), stored(SMALL, block(offset=BLOCK_BYTES + 4, length=4)))
    assert asked == ["p.x"]
    with pytest.raises(CorruptionError) as caught:
        check(stored(LARGE, TWO[0], block(offset=BLOCK_BYTES + 5, length=4)))
    error = caught.value
    assert (error.file, error.name, error.span) == ("p.x", "w", (BLOCK_BYTES, BLOCK_BYTES + 4))
    assert (error.expected, error.found) == (f"at least {BLOCK_BYTES + 9} bytes", f"{BLOCK_BYTES + 8} bytes")
    with pytest.raises(CorruptionError) as caught:
        check(stored(SMALL, block("gone", length=4)))
    assert caught.value.found == "no such file"


def test_damage_is_told_with_its_rows() -> None:
    spec = TensorSpec((10, 4), "float32")  # 16 bytes a row
    error = damaged(block(length=20), file="f", name="w", offset=20, expected=None, found=None)
    assert error.message == "w, bytes 20-40, is damaged in f"
    told = with_rows(error, spec)
    assert (told.rows, told.span, told.file, told.name) == ((1, 3), (20, 40), "f", "w")
    assert told.message == "w, rows 1-3, bytes 20-40, is damaged in f"
    assert with_rows(told, spec) is told
    whole = damaged(block(length=16), file="f", name="w", offset=16, expected=None, found=None)
    assert with_rows(whole, spec).rows == (1, 2)


def test_damage_without_rows_stays_as_it_is() -> None:
    error = damaged(block(), file="f", name="w", offset=0, expected=None, found=None)
    assert with_rows(error, TensorSpec((), "float64")) is error
    assert with_rows(error, TensorSpec((0, 3), "float64")) is error
    other = CorruptionError("f is damaged", file="f")
    assert with_rows(other, TensorSpec((10,), "float64")) is other


def test_rows_of_less_than_a_byte_are_bytes() -> None:
    error = damaged(block(length=2), file="f", name="w", offset=3, expected=None, found=None)
    assert with_rows(error, TensorSpec((10,), "uint8")).rows == (3, 5)


def test_a_block_in_the_same_place_comes_first() -> None:
    first, same, other = block(mark="1"), block(offset=8, mark="1"), block(offset=16, mark="2")
    known = KnownBlocks.of([Stored("a", SMALL, (first,)), Stored("b", LARGE, (other, same))], {"p": 24})
    assert known.find("a", 0, "c1") is first
    assert known.find("b", 1, "c1") is same
    assert known.find("elsewhere", 0, "c1") is first
    assert known.find("a", 0, "c2") is other
    assert known.find("a", 0, "c3") is None


def test_blocks_of_packs_that_are_not_whole_and_damaged_ones_are_not_known() -> None:
    good, bad, elsewhere = block(mark="1"), block(offset=8, mark="2"), block("q", mark="3")
    known = KnownBlocks.of(
        [Stored("a", LARGE, (good, bad)), Stored("b", SMALL, (elsewhere,))], {"p": 24}, without={("p", 8, 8)}
    )
    assert [known.find("x", 0, f"c{n}") for n in (1, 2, 3)] == [good, None, None]


def test_a_pack_is_worth_using_from_a_quarter_on() -> None:
    known = KnownBlocks.of([], {"p": 64, "q": 65})
    found = [block("p"), block("p", 8), block("q"), block("q", 8)]
    assert known.worth_using(found) == {"p"}
    assert known.worth_using([block("p"), block("p")]) == frozenset()
