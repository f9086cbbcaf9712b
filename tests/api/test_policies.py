"""Policies are pure functions of history; retention is checked against a small oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import safepoint
from safepoint.api.policies import Moment
from safepoint.repository import Repository, Snapshot, direction
from safepoint.repository.schema import ManifestReference
from safepoint.store import MemoryStore
from safepoint.tree import StateTree

START = datetime(2026, 1, 1, tzinfo=UTC)


def snapshot(number: int, step: int, **changes: Any) -> Snapshot:
    base = Snapshot(
        number, step, START + timedelta(minutes=number), {}, None, number - 1 if number else None, (), False, None,
        0, 0, 0, {}, ManifestReference("", 0, ""),
    )  # fmt: skip
    return replace(base, **changes)


def moment(step: int, minutes: float = 0, **metrics: float) -> Moment:
    return Moment(step, metrics, START + timedelta(minutes=minutes), START)


def test_every_steps_counts_from_the_newest_snapshot_of_the_lineage() -> None:
    policy = safepoint.EverySteps(10)
    assert next(step for step in range(25) if policy.due(moment(step), [])) == 9
    assert not policy.due(moment(16), [snapshot(0, 7)])
    assert policy.due(moment(17), [snapshot(0, 7)])


def test_every_minutes_does_not_count_the_time_a_job_stood_still() -> None:
    policy = safepoint.EveryMinutes(30)
    old = [snapshot(0, 0, time=START - timedelta(hours=8))]
    assert not policy.due(moment(1, minutes=29), old)
    assert policy.due(moment(1, minutes=30), old)


def test_on_best_wants_a_number_better_than_before() -> None:
    policy = safepoint.OnBest("val_loss")
    history = [snapshot(0, 0, metrics={"val_loss": 0.5}), snapshot(1, 1, metrics={"val_loss": math.nan})]
    assert policy.due(moment(2, val_loss=0.4), history)
    assert not policy.due(moment(2, val_loss=0.5), history)
    assert not policy.due(moment(2, val_loss=math.nan), history)
    assert not policy.due(moment(2, other=0.1), history)
    assert safepoint.OnBest("accuracy").due(moment(2, accuracy=0.1), history)


@pytest.mark.parametrize(
    ("metric", "better"),
    [("loss", "min"), ("val_loss", "min"), ("accuracy", "max"), ("val_auc", "max"), ("mse", "min"), ("bleu", "max")],
)
def test_auto_goes_by_the_name(metric: str, better: str) -> None:
    assert direction(metric) == better


def test_policies_refuse_nonsense() -> None:
    wrong: list[Any] = [
        lambda: safepoint.Latest(0),
        lambda: safepoint.Best(-1, "loss"),
        lambda: safepoint.EveryNth(steps=0),
        lambda: safepoint.Within(hours=0),
        lambda: safepoint.EverySteps(0),
        lambda: safepoint.EveryMinutes(0),
        lambda: safepoint.Best(1, "loss", "smallest"),  # type: ignore[arg-type]
        lambda: safepoint.OnBest("loss", "big"),  # type: ignore[arg-type]
    ]
    for make in wrong:
        with pytest.raises(safepoint.UnsupportedError):
            make()


histories = st.lists(
    st.tuples(
        st.integers(1, 5),  # steps since the one before
        st.sampled_from([None, 0.1, 0.2, 0.3, math.nan, math.inf]),
        st.booleans(),  # tagged
        st.integers(0, 90),  # minutes since the one before
    ),
    max_size=12,
)
policies = st.lists(
    st.one_of(
        st.builds(safepoint.Latest, st.integers(1, 4)),
        st.builds(safepoint.Best, st.integers(1, 3), st.sampled_from([None, "loss", "absent"])),
        st.builds(safepoint.EveryNth, steps=st.integers(1, 7)),
        st.builds(safepoint.Within, hours=st.integers(1, 5)),
    ),
    max_size=3,
)


def known(items: list[dict[str, Any]]) -> list[dict[str, bool]]:
    """Which metrics each snapshot has."""
    return [{"loss": item["loss"] is not None, "absent": False} for item in items]


def oracle(items: list[dict[str, Any]], keep: list[Any], now: datetime) -> set[int]:
    """What must stay, said once more in the plainest way."""
    if not keep:
        return {item["number"] for item in items}
    stay = {item["number"] for item in items if item["tagged"]} | {items[-1]["number"]}
    for policy in keep:
        if isinstance(policy, safepoint.Latest):
            stay |= {item["number"] for item in sorted(items, key=lambda i: -i["number"])[: policy.n]}
        elif isinstance(policy, safepoint.Best) and policy.metric and not any(i[policy.metric] for i in known(items)):
            stay |= {item["number"] for item in items}
        elif isinstance(policy, safepoint.Best):
            numbers = [i for i in items if i["loss"] is not None and not math.isnan(i["loss"])]
            stay |= {i["number"] for i in sorted(numbers, key=lambda i: (i["loss"], i["number"]))[: policy.n]}
        elif isinstance(policy, safepoint.EveryNth):
            for stretch in {i["step"] // policy.steps for i in items}:
                stay.add(min(i["number"] for i in items if i["step"] // policy.steps == stretch))
        elif isinstance(policy, safepoint.Within):
            stay |= {i["number"] for i in items if (now - i["time"]).total_seconds() <= policy.hours * 3600}
    return stay


@given(histories, policies)
def test_prune_keeps_exactly_what_the_policies_say(history: list[Any], keep: list[Any]) -> None:
    now = [START]
    repository = Repository(MemoryStore(), clock=lambda: now[0])
    items: list[dict[str, Any]] = []
    step = -1
    for gap, loss, tagged, minutes in history:
        step += gap
        now[0] += timedelta(minutes=minutes)
        metrics = {} if loss is None else {"loss": loss}
        tags = [f"tag{step}"] if tagged else []
        saved = repository.commit(StateTree({"x": step}), step=step, metrics=metrics, tags=tags)
        items.append({"number": saved.number, "step": step, "loss": loss, "tagged": tagged, "time": now[0]})
    if not items:
        return
    would = [s.number for s in repository.prune(keep)]
    assert len(repository.snapshots) == len(items), "a dry run changes nothing"
    gone = {s.number for s in repository.prune(keep, dry_run=False)}
    assert sorted(gone) == would
    repository.collect()
    left = {s.number for s in Repository(repository.store).snapshots}
    assert left == oracle(items, keep, now[0])
    assert repository.prune(keep, dry_run=False) == []


def test_a_metric_in_the_place_of_the_number_is_told_where_it_belongs() -> None:
    with pytest.raises(safepoint.UnsupportedError) as raised:
        safepoint.Best("val_loss")  # type: ignore[arg-type]
    assert raised.value.hint == "the number comes first: Best(1, 'val_loss')"
