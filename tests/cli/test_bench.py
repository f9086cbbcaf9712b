"""`safepoint bench`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safepoint.cli import bench, bench_ways
from safepoint.cli.machine import described
from safepoint.repository import Repository


def test_json_is_one_document_with_these_fields(tmp_path, safepoint) -> None:
    result = safepoint("bench", tmp_path, "--size", "20MB", "--rounds", 2, "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert list(document) == [
        "directory", "machine", "num_bytes", "num_tensors", "rounds", "ways", "stall_seconds", "first_stall_seconds",
        "memcpy_seconds",
    ]  # fmt: skip
    assert document["num_bytes"] == 20_000_000
    names = [way["name"] for way in document["ways"]]
    assert names[:2] == ["raw disk", "safepoint"]
    assert "numpy.savez" in names
    for way in document["ways"]:
        assert list(way) == [
            "name", "num_bytes", "save_seconds", "restore_cold_seconds", "restore_warm_seconds", "peak_bytes",
            "checked",
        ]  # fmt: skip
        assert way["save_seconds"] > 0
        assert way["restore_cold_seconds"] > 0
    assert document["stall_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_table_fits_and_quiet_leaves_the_seconds_of_a_save(tmp_path, safepoint) -> None:
    result = safepoint("bench", tmp_path, "--size", "5MB", "--rounds", 1)
    assert result.code == 0
    assert max(map(len, result.out.splitlines()[3:])) <= 80
    for word in ("raw disk", "safepoint", "numpy.savez", "memcpy", described().split(",")[0]):
        assert word in result.out
    assert float(safepoint("bench", tmp_path, "--size", "2MB", "--rounds", 1, "-q").out) > 0


@pytest.mark.parametrize("size", ["", "much", "1kB", "-5GB", "nan", "inf"])
def test_a_size_that_is_none_is_a_usage_error(tmp_path, safepoint, size) -> None:
    result = safepoint("bench", tmp_path, "--size", size)
    assert result.code == 2
    assert "is no size" in result.err


def test_a_place_that_cannot_be_is_a_usage_error(tmp_path, safepoint) -> None:
    assert safepoint("bench", tmp_path / "nowhere").code == 2


def test_every_way_brings_back_what_it_saved(tmp_path) -> None:
    state = bench_ways.make_state(3_000_000)
    expected = {name: array.copy() for name, array in state.items()}
    assert sum(array.nbytes for array in state.values()) == 3_000_000
    for way in (bench_ways.ours(tmp_path, state), *bench_ways.peers(tmp_path, state)):
        way.save()
        for array in state.values():
            array[...] = 0
        way.load()
        assert all((state[name] == expected[name]).all() for name in state), way.name
        way.clear()
    assert list(tmp_path.iterdir()) == []


def test_ours_is_a_real_repository(tmp_path) -> None:
    way = bench_ways.ours(tmp_path, bench_ways.make_state(1_000_000))
    way.save()
    assert Repository(way.path).verify().ok


def test_an_interrupted_run_leaves_nothing(tmp_path, safepoint, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_measure", interrupt)
    assert safepoint("bench", tmp_path, "--size", "2MB").code == 130
    assert list(tmp_path.iterdir()) == []


PEAK = """
from safepoint.cli.machine import peak_bytes, reset_peak
held = bytearray(100_000_000)
del held
before = reset_peak()
assert not before or before < 90_000_000
block = bytearray(50_000_000)
assert not before or 40_000_000 <= peak_bytes() - before < 90_000_000
"""


def test_peak_memory_is_of_what_was_done_since() -> None:
    """In a process of its own: in this one, memory of other tests may come and go."""
    subprocess.run([sys.executable, "-c", PEAK], check=True)
