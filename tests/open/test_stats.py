"""Statistics, against what NumPy says of the whole array in double precision; what is kept of them in a repository."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import safepoint
from safepoint.api.stats import QUANTILES, Stats, measure
from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Repository, write_model_file
from safepoint.store import LocalStore
from safepoint.tree import Branch, StateTree, Tensor

from .conftest import safetensors_bytes

RNG = np.random.default_rng(20260)
LARGE = RNG.standard_normal((1100, 4096)).astype(np.float32)  # a block and a bit


def stats_of(array: np.ndarray) -> Stats:
    return measure({"x": Tensor.of(array)})["x"]


@pytest.mark.parametrize(
    "array",
    [
        RNG.standard_normal(1000).astype(np.float32),
        RNG.standard_normal((100, 999)),
        RNG.standard_normal(1000).astype(np.float16),
        RNG.standard_normal(70_001).astype(ml_dtypes.bfloat16),
        RNG.standard_normal(500).astype(ml_dtypes.float8_e4m3fn),
        RNG.integers(0, 2, 300) == 1,
        RNG.integers(-100, 100, 3000).astype(np.int8),
        RNG.integers(0, 1 << 40, 3000),
        (1 + 1e-4 * RNG.standard_normal(100_000)).astype(np.float32),  # a narrow spread far from zero
        (1000 + 1e-2 * RNG.standard_normal(100_000)).astype(np.float32),
        (1e-22 * RNG.standard_normal(1000)).astype(np.float32),  # whose squares are no float32
        (1e30 * RNG.standard_normal(1000)).astype(np.float32),
        np.asfortranarray(RNG.standard_normal((30, 40))),
        LARGE,
    ],
    ids=lambda array: f"{array.dtype}-{array.size}-{np.abs(array).max():.0e}",
)
def test_statistics_are_numpys(array: np.ndarray) -> None:
    wide = array.astype(np.float64).ravel()
    found = stats_of(array)
    assert (found.minimum, found.maximum, found.elements) == (wide.min(), wide.max(), wide.size)
    assert found.zeros == np.count_nonzero(wide == 0)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-6, abs=1e-6 * wide.std())
    assert found.std == pytest.approx(wide.std(), rel=1e-5)
    assert found.norm == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    if wide.size <= 65_536:
        assert found.quantiles == pytest.approx(np.quantile(wide, QUANTILES), rel=1e-9)
    else:
        ranks = np.searchsorted(np.sort(wide), found.quantiles) / wide.size
        assert np.abs(ranks - QUANTILES).max() < 0.02


def test_quantiles_of_a_tensor_are_put_together_from_its_blocks(tmp_path: Path) -> None:
    ramp = np.arange(BLOCK_BYTES // 3, dtype=np.float32)
    (tmp_path / "ramp").write_bytes(safetensors_bytes({"x": ramp}))
    with safepoint.open(tmp_path / "ramp") as tensors:
        found = tensors.stats()["x"]
    assert np.array(found.quantiles) / ramp.size == pytest.approx(QUANTILES, abs=2e-3)
    assert found.mean == pytest.approx(ramp.astype(np.float64).mean())


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    array = np.array([np.nan, 1, np.inf, 3, -np.inf, np.nan], np.float32)
    found = stats_of(array)
    assert (found.nans, found.infinities, found.mean, found.minimum, found.maximum) == (2, 2, 2, 1, 3)
    assert found.quantiles is not None
    assert found.quantiles[3] == 2
    assert stats_of(np.full(3, np.nan)).quantiles is None
    assert stats_of(np.zeros((0, 4))).mean is None
    huge = stats_of(np.array([1e308, -1e308, 1e308]))
    assert (huge.minimum, huge.std, huge.norm) == (-1e308, None, None)
    assert stats_of(np.array([3 + 4j, 0])).maximum == 5


def test_dead_rows_and_columns_are_found_across_runs_and_blocks() -> None:
    array = RNG.standard_normal((70, 30, 50)).astype(np.float32)  # runs of 32 Ki elements end within rows
    array[7] = array[69] = 0
    array[..., 0] = 0
    found = stats_of(array)
    assert (found.dead_rows, found.dead_columns) == (2, 1)
    assert found.problems == ("2 dead rows", "1 dead column")
    array[7, 3, 3] = np.nan
    assert stats_of(array).dead_rows == 1
    zeros = stats_of(np.zeros((4, 4)))
    assert (zeros.dead_rows, zeros.problems) == (0, ("all zero",))
    assert stats_of(np.array([[0.0], [1.0], [0.0]])).problems == ()  # rows of one element


def test_the_same_bytes_twice_are_told_of_the_second(tmp_path: Path) -> None:
    weight = RNG.standard_normal((8, 8)).astype(np.float32)
    tensors = {"a": weight, "b": weight, "c": weight[::-1].copy(), "d": weight + 1, "z": np.zeros(8), "y": np.zeros(8)}
    (tmp_path / "file").write_bytes(safetensors_bytes(tensors))
    with safepoint.open(tmp_path / "file") as opened:
        found = opened.stats()
    assert {name: one.same_as for name, one in found.items() if one.same_as} == {"b": "a"}
    assert found["b"].problems == ("same as a",)
    repository = Repository(tmp_path / "run")
    repository.commit(StateTree({n: Tensor.of(a) for n, a in tensors.items()}, Branch("dict")))
    with safepoint.open(repository) as opened:
        assert {name: one.same_as for name, one in opened.stats().items() if one.same_as} == {"b": "a"}


def test_a_model_file_is_measured_by_its_blocks(tmp_path: Path) -> None:
    array = RNG.standard_normal((50, 60)).astype(np.float32)
    array[3] = 0
    tree = StateTree({"a": Tensor.of(array), "b": Tensor.of(array)}, Branch("dict"))
    write_model_file(tmp_path / "model", tree, structure={}, format="plain")
    with safepoint.open(tmp_path / "model") as tensors:
        found = tensors.stats()
    assert (found["a"].dead_rows, found["b"].problems) == (1, ("1 dead row", "same as a"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


PROBE = """
import sys
import safepoint
from safepoint.cli.machine import peak_bytes
with safepoint.open(sys.argv[1]) as tensors:
    (found,) = tensors.stats().values()
assert found.zeros == found.elements
print(peak_bytes() >> 20)
"""


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    table = {"x": {"dtype": "F32", "shape": [400 << 18], "data_offsets": [0, 400 << 20]}}
    text = json.dumps(table).encode()
    with (tmp_path / "large").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (400 << 20))  # a hole
    command = [sys.executable, "-c", PROBE, str(tmp_path / "large")]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 256


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A run of two snapshots; the second has one block more."""
    arrays = {"w": LARGE, "b": np.eye(9, dtype=np.float32)}
    arrays["b"][4] = 0
    repository = Repository(tmp_path / "run")
    for _ in range(2):
        repository.commit(StateTree({n: Tensor.of(a) for n, a in arrays.items()}, Branch("dict")))
        arrays = {**arrays, "new": np.arange(1000.0)}
    return tmp_path / "run", arrays


def test_what_was_measured_is_not_read_again(
    measured: tuple[Path, dict[str, np.ndarray]], bytes_read: Callable[[], int]
) -> None:
    path, arrays = measured
    first = safepoint.open(path, at="id:0").stats()
    assert bytes_read() > LARGE.nbytes
    assert len(list((path / "derived").iterdir())) == 2  # rows of blocks, and dead rows
    again = safepoint.open(path, at="id:1").stats()
    assert bytes_read() < arrays["new"].nbytes + 100_000
    assert {name: again[name] for name in first} == first
    assert (first["b"].dead_rows, first["b"].dead_columns) == (1, 1)


def test_what_is_kept_is_ignored_when_damaged_and_not_missed(measured: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = measured
    first = safepoint.open(path).stats()
    for file in (path / "derived").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.chmod(0o644)
        file.write_bytes(data)
    assert safepoint.open(path).stats() == first
    for file in (path / "derived").iterdir():
        file.unlink()
    (path / "derived").rmdir()
    (path / "derived").write_text("no folder")
    assert safepoint.open(path).stats() == first
    Repository(path).collect()
    assert Repository(path).verify().ok


def test_nothing_is_written_where_nothing_can_be(
    measured: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalStore, name: str, data: bytes) -> None:
        raise safepoint.StoreError("read-only", error=OSError(30, "Read-only file system"))

    path, _ = measured
    monkeypatch.setattr(LocalStore, "create", refuse)
    assert set(safepoint.open(path).stats()) == {"w", "b", "new"}
    assert not (path / "derived").exists()
