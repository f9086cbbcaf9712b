"""The rules of `safepoint health`, on runs whose numbers are made: each fault gives its finding, no healthy run any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from safepoint.api.health import Health, examine
from safepoint.repository import Repository
from safepoint.store import MemoryStore
from safepoint.tree import Branch, StateTree, Tensor

State = dict[str, np.ndarray]
STEPS = 8


def trained(change: Callable[[int, State], Any] | None = None, *, moments: bool = True, steps: int = STEPS) -> Health:
    """A run of three layers that all move; `change` is what goes wrong at a snapshot."""
    rng = np.random.default_rng(0)
    state: State = {}
    for layer in "abc":
        state[f"model/{layer}.weight"] = rng.normal(scale=0.1, size=(16, 8)).astype(np.float32)
        state[f"model/{layer}.bias"] = np.zeros(16, np.float32)
    repository = Repository(MemoryStore())
    for step in range(steps):
        for name in [f"model/{layer}.{part}" for layer in "abc" for part in ("weight", "bias")]:
            if name not in state:
                continue
            state[name] = state[name] + rng.normal(scale=0.01, size=state[name].shape).astype(np.float32)
            if moments:
                gradient = rng.normal(scale=0.01, size=state[name].shape).astype(np.float32)
                state[f"optimizer/{name}/exp_avg"] = gradient if step else 0 * gradient
                state[f"optimizer/{name}/exp_avg_sq"] = gradient**2 if step else 0 * gradient
        metrics = {"loss": 1 / (step + 1)}
        if change is not None:
            metrics |= change(step, state) or {}
        commit(repository, state, step, metrics)
    return examine(repository)


def commit(repository: Repository, state: State, step: int, metrics: dict[str, float]) -> None:
    leaves = {name: Tensor.of(np.ascontiguousarray(array)) for name, array in state.items()}
    repository.commit(StateTree(leaves, Branch("dict")), step=10 * step, metrics=metrics)


def only(health: Health) -> Any:
    assert len(health.findings) == 1, [(f.kind, f.evidence) for f in health.findings]
    return health.findings[0]


@pytest.mark.parametrize("moments", [True, False])
def test_a_run_in_which_all_moves_is_healthy(moments) -> None:
    health = trained(moments=moments)
    assert health.findings == ()
    assert health.notes == ()
    assert (health.num_weights, health.num_moments) == (6, 12 if moments else 0)


def test_nan_is_found_where_it_began_and_what_follows_from_it_is_not() -> None:
    def change(step: int, state: State) -> dict[str, float] | None:
        if step == 3:
            state["model/b.weight"][0, :2] = np.nan
        if step >= 4:
            for name in state:
                state[name] = np.full_like(state[name], np.nan)
            return {"loss": np.nan}
        return None

    finding = only(trained(change))
    assert finding.kind == "not finite"
    assert finding.snapshot.step == 30
    assert finding.last_good.step == 20
    assert finding.evidence == {"model/b.weight": "2 NaN of 128"}


def test_infinity_in_a_moment_is_found() -> None:
    def change(step: int, state: State) -> None:
        if step == 5:
            state["optimizer/model/a.bias/exp_avg_sq"][3] = np.inf

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step) == ("not finite", 50)
    assert finding.evidence == {"optimizer/model/a.bias/exp_avg_sq": "1 infinite of 16"}


def test_a_metric_that_ends_as_nan_is_found_and_one_that_is_missing_now_and_then_is_not() -> None:
    def change(step: int, _: State) -> dict[str, float]:
        late, seldom = np.nan if step >= 6 else 1.0, np.nan if step % 2 else 1.0
        return {"loss": late, "val": seldom, "never": np.nan, "best": np.inf}

    finding = only(trained(change, steps=9))
    assert (finding.kind, finding.snapshot.step) == ("not finite", 60)
    assert finding.evidence == {"loss": "NaN from here on"}


def test_a_mask_of_infinities_is_healthy() -> None:
    def change(_: int, state: State) -> None:
        state["model/mask"] = np.triu(np.full((4, 4), -np.inf, np.float32), 1)

    assert trained(change).findings == ()


def test_a_matrix_that_explodes_is_found() -> None:
    def change(step: int, state: State) -> None:
        if step == 4:
            state["model/c.weight"] *= 1000

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step, finding.last_good.step) == ("exploding", 40, 30)
    assert list(finding.evidence) == ["model/c.weight"]
    assert finding.evidence["model/c.weight"].startswith("norm 1.")


def test_a_slow_explosion_is_found() -> None:
    def change(step: int, state: State) -> None:
        if step:
            state["model/c.weight"] *= 3

    assert only(trained(change)).kind == "exploding"


def test_what_begins_near_zero_may_grow_and_so_may_a_bias() -> None:
    def change(step: int, state: State) -> None:
        state["model/lora.b"] = np.full((4, 4), 0.05 * step, np.float32) + np.eye(4, dtype=np.float32) * 0.01 * step
        state["model/c.bias"] = np.linspace(0, 1, 16, dtype=np.float32) + np.float32(500 * step)
        state["model/norm.running_var"] = np.linspace(1, 2, 16, dtype=np.float32) * np.float32(1 + 1000 * step)

    assert trained(change, moments=False).findings == ()


def test_units_that_die_are_found() -> None:
    def change(step: int, state: State) -> None:
        if step >= 5:
            state["model/a.weight"][[2, 3]] = 0
            state["model/b.weight"][:, 7] = 0

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step) == ("dead units", 50)
    assert finding.evidence == {
        "model/a.weight": "2 of 16 rows all zero, 0 before",
        "model/b.weight": "1 of 8 columns all zero, 0 before",
    }


def test_padding_and_adapters_that_begin_at_zero_are_healthy() -> None:
    def change(step: int, state: State) -> None:
        state["model/a.weight"][0] = 0
        if step == 0:
            state["model/b.weight"][:] = 0
        if step == 3:
            state["model/c.weight"][1] = 0  # for one snapshot

    assert trained(change).findings == ()


def frozen(name: str, since: int) -> Callable[[int, State], None]:
    kept: list[np.ndarray] = []

    def change(step: int, state: State) -> None:
        if step == since:
            kept.append(state[name].copy())
        elif step > since:
            state[name] = kept[0].copy()

    return change


def test_a_weight_that_the_optimizer_holds_moments_of_and_does_not_move_is_found() -> None:
    finding = only(trained(frozen("model/b.weight", 3)))
    assert (finding.kind, finding.snapshot.step, finding.last_good.step) == ("standing still", 40, 30)
    assert finding.evidence == {"model/b.weight": "the same bytes since step 30, while 5 others moved"}


def test_without_an_optimizer_only_a_weight_that_moved_before_is_found() -> None:
    assert only(trained(frozen("model/b.weight", 3), moments=False)).kind == "standing still"
    health = trained(frozen("model/b.weight", 0), moments=False)
    assert health.findings == ()
    assert health.notes == ("never moved, frozen on purpose? model/b.weight",)


def test_a_weight_without_moments_beside_weights_with_moments_is_frozen_on_purpose() -> None:
    fix = frozen("model/b.weight", 0)

    def change(step: int, state: State) -> None:
        fix(step, state)
        for slot in ("exp_avg", "exp_avg_sq"):
            del state[f"optimizer/model/b.weight/{slot}"]

    health = trained(change)
    assert health.findings == ()
    assert health.notes == ("never moved, frozen on purpose? model/b.weight",)


def test_a_schedule_that_ends_is_healthy() -> None:
    kept: State = {}

    def change(step: int, state: State) -> None:
        if step >= 5:
            kept.update({name: array.copy() for name, array in state.items() if name not in kept})
            state.update({name: kept[name].copy() for name in state if name.startswith("model/")})

    assert trained(change).findings == ()


def test_moments_that_stay_zero_are_found_once_and_not_also_as_standing_still() -> None:
    fix = frozen("model/b.weight", 0)

    def change(step: int, state: State) -> None:
        fix(step, state)
        for slot in ("exp_avg", "exp_avg_sq"):
            state[f"optimizer/model/b.weight/{slot}"] = np.zeros((16, 8), np.float32)

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step) == ("moments at zero", 10)
    assert list(finding.evidence) == [f"optimizer/model/b.weight/{slot}" for slot in ("exp_avg", "exp_avg_sq")]


def test_an_optimizer_that_began_anew_is_found() -> None:
    def change(step: int, state: State) -> None:
        if step == 4:
            state.update({n: np.zeros_like(a) for n, a in state.items() if n.startswith("optimizer/")})

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step) == ("moments at zero", 40)
    assert len(finding.evidence) == 12
    assert set(finding.evidence.values()) == {"zero, and was not at step 30"}


def test_an_optimizer_that_never_trains_is_found() -> None:
    def change(_: int, state: State) -> None:
        state.update({n: np.zeros_like(a) for n, a in state.items() if n.startswith("optimizer/")})

    finding = only(trained(change))
    assert finding.kind == "moments at zero"
    assert "though the weight moved" in finding.evidence["optimizer/model/a.bias/exp_avg"]


def test_layers_that_become_the_same_are_found() -> None:
    def change(step: int, state: State) -> None:
        if step == 6:
            state["model/c.weight"] = state["model/a.weight"].copy()

    finding = only(trained(change))
    assert (finding.kind, finding.snapshot.step, finding.last_good.step) == ("duplicates", 60, 50)
    assert finding.evidence == {"model/c.weight": "the same bytes as model/a.weight, others before"}


def test_tied_layers_copies_at_the_start_and_target_networks_are_healthy() -> None:
    def change(step: int, state: State) -> None:
        state["model/head.weight"] = state["model/a.weight"].copy()
        if step == 0:
            state["model/c.weight"] = state["model/b.weight"].copy()
        state["model/target.b.weight"] = state["model/b.weight"] * np.float32(1 if step % 3 == 0 else 0.99)
        state["ema/b.weight"] = state["model/target.b.weight"].copy()

    health = trained(change, moments=False)
    assert health.findings == ()
    pairs = "model/a.weight = model/head.weight, model/target.b.weight = ema/b.weight"
    assert health.notes == (f"always the same, tied? {pairs}",)


def test_one_snapshot_can_have_nan_too_and_is_said_to_be_too_few() -> None:
    def change(_: int, state: State) -> None:
        state["model/a.bias"][0] = np.nan

    health = trained(change, steps=1)
    finding = only(health)
    assert finding.last_good is None
    assert health.notes == ("3 snapshots are needed to tell what stands still",)


def test_of_two_faults_both_are_told_in_their_order() -> None:
    def change(step: int, state: State) -> None:
        if step >= 3:
            state["model/a.weight"][4] = 0
        if step == 6:
            state["model/b.bias"][0] = np.nan

    assert [finding.kind for finding in trained(change).findings] == ["dead units", "not finite"]


def test_layers_that_come_and_go_are_no_matter() -> None:
    def change(step: int, state: State) -> None:
        if step in {2, 5}:
            del state["model/c.weight"]
        elif step in {3, 6}:
            state["model/c.weight"] = state["model/a.weight"] * np.float32(1 + step)

    assert trained(change, moments=False).findings == ()


def test_names_of_other_frameworks_are_understood() -> None:
    from safepoint.api.roles import roles_of
    from safepoint.tree import TensorSpec

    matrix, number = TensorSpec((3, 2), "float32"), TensorSpec((), "int32")
    specs = {
        "params/dense/kernel": matrix, "opt_state/1/0/mu/dense/kernel": matrix, "opt_state/1/0/count": number,
        "model/layers/dense/vars/0": matrix, "model/optimizer/layers/dense/vars/0/velocity": matrix,
        "net/m": matrix, "random/numpy/state": TensorSpec((4,), "float32"),
        "optimizer/net/m/exp_avg": matrix, "optimizer/net/m/step": TensorSpec((), "float32"),
    }  # fmt: skip
    roles = roles_of(specs)
    assert roles.weights == ("params/dense/kernel", "model/layers/dense/vars/0", "net/m")
    assert roles.moments == {
        "opt_state/1/0/mu/dense/kernel": ("params/dense/kernel", "mu"),
        "model/optimizer/layers/dense/vars/0/velocity": ("model/layers/dense/vars/0", "velocity"),
        "optimizer/net/m/exp_avg": ("net/m", "exp_avg"),
    }
