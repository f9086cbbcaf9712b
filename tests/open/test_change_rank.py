"""The rank of a change: of adapters merged into weights, of training, of rounding; in parts, through any shape."""

from __future__ import annotations

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from safepoint.api.change_rank import MOST_RANKS, ChangeRank, has_rank
from safepoint.tree import Tensor, TensorSpec

RNG = np.random.default_rng(6)


def weights(rows: int, columns: int) -> np.ndarray:
    return (RNG.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)


def low_rank(rows: int, columns: int, rank: int, scale: float) -> np.ndarray:
    left, right = RNG.standard_normal((rows, rank)), RNG.standard_normal((rank, columns))
    return scale * left @ right / math.sqrt(columns * rank)


def rank_of(before: np.ndarray, after: np.ndarray, *, pieces: int = 3) -> int | None:
    ranks = ChangeRank(Tensor.of(before).spec, Tensor.of(after).spec)
    a, b = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    delta = (b - a).astype(np.float32)
    cuts = np.linspace(0, len(delta), pieces + 1).astype(int)
    for start, stop in pairwise(cuts):
        ranks.add(delta[start:stop], int(start))
    return ranks.rank(before=float(np.dot(b, b)), change=float(np.dot(b - a, b - a)))


@pytest.mark.parametrize(("rows", "columns"), [(20, 30), (60, 700), (700, 60), (500, 600), (5000, 150)])
@pytest.mark.parametrize("rank", [1, 8])
def test_adapters_merged_into_weights_have_their_rank(rows: int, columns: int, rank: int) -> None:
    before = weights(rows, columns)
    after = (before + low_rank(rows, columns, rank, 0.05)).astype(np.float32)
    assert rank_of(before, after) == rank
    assert rank_of(before, after, pieces=1) == rank


def test_adapters_are_found_above_the_rounding_of_bfloat16() -> None:
    before = weights(600, 600).astype(ml_dtypes.bfloat16)
    after = (before.astype(np.float64) + low_rank(600, 600, 4, 0.3)).astype(ml_dtypes.bfloat16)
    assert rank_of(before, after) == 4


def test_training_moves_all_ranks() -> None:
    before = weights(300, 400)
    assert rank_of(before, before + 0.01 * weights(300, 400)) == MOST_RANKS
    assert rank_of(before[:100], before[:100] + 0.01 * weights(100, 400)) == 100


def test_rounding_has_no_rank() -> None:
    before = weights(300, 400)
    assert rank_of(before, before.astype(ml_dtypes.bfloat16)) == 0
    assert rank_of(before.astype(np.float64), (before.astype(np.float64) * (1 + 1e-9)).astype(np.float32)) == 0


def test_few_rows_and_single_elements_count() -> None:
    before = weights(2000, 300)
    after = before.copy()
    after[RNG.choice(2000, 37, replace=False)] += 0.1 * weights(37, 300)
    assert rank_of(before, after) == 37
    after = before.copy()
    after[3, 5] += 1
    assert rank_of(before, after) == 1


def test_what_is_beyond_single_precision_has_none() -> None:
    assert rank_of(np.zeros((200, 200), np.float32), np.full((200, 200), 3e38, np.float32)) is None


def test_only_matrices_of_bounded_width_have_a_rank() -> None:
    found = [has_rank(TensorSpec(shape, "float32")) for shape in [(3,), (2, 2), (1, 9), (9, 70_000), (2, 2, 2)]]
    assert found == [False, True, False, False, False]
