"""`repository.verify`: neighbours are read with one call, each block is judged by itself, samples are large enough."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from safepoint.codec import checksum, digest
from safepoint.errors import CorruptionError
from safepoint.repository import verify
from safepoint.repository.stored import Block
from safepoint.repository.verify import Use, check_all

DATA = np.random.default_rng(0).integers(0, 255, 4000, np.uint8)


def use(offset: int, length: int, *, pack: str = "p") -> Use:
    data = DATA[offset : offset + length].tobytes()
    return Block(pack, offset, length, digest(data), checksum(data)), f"t{offset}", 0


class Pack:
    """A file that remembers what was read, and may be damaged."""

    def __init__(self) -> None:
        self.data = DATA.copy()
        self.asked: list[tuple[str, int, int]] = []

    def read_into(self, file: str, offset: int, target: NDArray[np.uint8]) -> None:
        self.asked.append((file, offset, len(target)))
        if offset + len(target) > len(self.data):
            raise CorruptionError("it ends early", file=file)
        target[:] = self.data[offset : offset + len(target)]

    def check(self, *uses: Use) -> list[str]:
        """Names of the tensors whose blocks are damaged."""
        names = {block: name for block, name, _ in uses}
        return [
            names[block] for block, _ in check_all(uses, self.read_into, file_of=lambda pack: f"{pack}.x", threads=1)
        ]


def test_neighbours_are_read_with_one_call_in_the_order_of_the_disk() -> None:
    pack = Pack()
    assert pack.check(use(1300, 50), use(1100, 200), use(1000, 100)) == []
    assert pack.asked == [("p.x", 1000, 350)]


@pytest.mark.parametrize(
    "uses", [(use(0, 100), use(101, 100)), (use(0, 100), use(100, 100, pack="q")), (use(0, 100), use(99, 100))]
)
def test_others_are_not(uses: tuple[Use, ...]) -> None:
    pack = Pack()
    assert pack.check(*uses) == []
    assert len(pack.asked) == 2


def test_a_call_reads_so_much_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_BATCH_BYTES", 200)
    pack = Pack()
    assert pack.check(use(0, 100), use(100, 100), use(200, 1), use(201, 500), use(701, 10)) == []
    assert pack.asked == [("p.x", 0, 200), ("p.x", 200, 1), ("p.x", 201, 500), ("p.x", 701, 10)]


@pytest.mark.parametrize("place", [1000, 1099, 1100, 1349])
def test_of_neighbours_the_damaged_one_is_named(place: int) -> None:
    pack = Pack()
    pack.data[place] ^= 1
    uses = (use(1000, 100), use(1100, 200), use(1300, 50))
    expected = next(name for block, name, _ in uses if block.offset <= place < block.offset + block.length)
    assert pack.check(*uses) == [expected]


def test_a_file_that_ends_early_costs_what_is_behind_its_end() -> None:
    pack = Pack()
    pack.data = pack.data[:1150]
    assert pack.check(use(1000, 100), use(1100, 40), use(1140, 60)) == ["t1140"]


def test_progress_is_of_bytes() -> None:
    told: list[tuple[int, int]] = []
    uses = [use(0, 100), use(100, 50), use(1000, 7)]
    check_all(uses, Pack().read_into, file_of=str, progress=lambda done, total: told.append((done, total)))
    assert told == [(150, 157), (157, 157)]


@pytest.mark.parametrize(("part", "most"), [(1e-9, 1), (0.25, 3), (0.5, 5), (1.0, 10)])
def test_a_sample_has_at_least_that_part_and_at_most_one_block_more(part: float, most: int) -> None:
    uses = [use(100 * number, 100) for number in range(10)]
    chosen = verify._sampled(uses, part)
    assert 100 * len(chosen) >= part * 1000
    assert len(chosen) <= most
    assert len({block.offset for block, _, _ in chosen}) == len(chosen)
