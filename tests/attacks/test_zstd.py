"""What is counted of Zstandard frames before anybody unpacks them."""

from __future__ import annotations

from safepoint.formats.zstd import most_unpacked

HEAD = b"\x28\xb5\x2f\xfd\0\x58"
ZEROS = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"\0"  # a block of 128 KiB in four bytes
LAST = b"\1\0\0"


def test_blocks_that_repeat_a_byte_are_counted_by_what_they_say() -> None:
    assert most_unpacked(HEAD + ZEROS * 8 + LAST, enough=1 << 30) == (1 << 20) + 1024


def test_packed_blocks_are_counted_at_their_largest() -> None:
    packed = (2 << 1 | 5 << 3 | 1).to_bytes(3, "little") + bytes(5)
    assert most_unpacked(HEAD + packed, enough=1 << 30) == 128 << 10


def test_a_frame_behind_another_or_behind_anything_is_counted() -> None:
    frame = HEAD + ZEROS + LAST
    assert most_unpacked(frame + b"index" + frame, enough=1 << 30) == 2 * most_unpacked(frame, enough=1 << 30)


def test_a_frame_within_a_frame_is_counted_where_somebody_may_be_told_to_read_there() -> None:
    within = HEAD + ZEROS * 80 + LAST
    data = HEAD + (len(within) << 3 | 1).to_bytes(3, "little") + within  # a block that is kept as it is
    assert most_unpacked(data, enough=1 << 30) < 1 << 20
    assert most_unpacked(data, enough=1 << 30, nested=True) > 10 << 20


def test_no_frame_of_somebodys_own_making_leads_over_a_real_one() -> None:
    """A frame that readers skip holds the beginning of one whose block would reach over what comes next."""
    skipped = HEAD + (1 << 20 << 3).to_bytes(4, "little")[:3]
    data = b"\x50\x2a\x4d\x18" + len(skipped).to_bytes(4, "little") + skipped + HEAD + ZEROS * 80 + LAST
    assert most_unpacked(data, enough=1 << 30) > 10 << 20


def test_what_is_cut_short_or_no_frame_counts_for_what_is_there() -> None:
    assert most_unpacked(b"", enough=1) == most_unpacked(b"no zstd", enough=1) == most_unpacked(HEAD[:4], enough=1) == 0
    assert most_unpacked((HEAD + ZEROS)[:-2], enough=1 << 30) == 0


def test_frames_within_frames_cost_no_more_time_than_one() -> None:
    """A walk to the end from every magic number would take the square of the size; it ends when enough was counted."""
    assert most_unpacked(HEAD * 500_000, enough=64 << 20, nested=True) > 0
