"""`safepoint health`; its rules: tests/api/test_symptoms.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor


@pytest.fixture
def ill(tmp_path: Path, monkeypatch) -> Repository:
    """Five snapshots, the last two with NaN."""
    monkeypatch.chdir(tmp_path)
    repository = Repository("runs/ill")
    rng = np.random.default_rng(0)
    for step in range(5):
        weight = rng.normal(size=(6, 4)).astype(np.float32)
        weight[: step - 2 if step > 2 else 0] = np.nan
        leaves = {f"model/{name}": Tensor.of(weight) for name in ("a", "b", "c", "d", "e")}
        repository.commit(StateTree(leaves, Branch("dict")), step=step * 10)
    return repository


def test_a_finding_says_where_what_the_last_good_and_what_next(ill: Repository, safepoint) -> None:
    result = safepoint("health", "runs/ill")
    assert result.code == 3
    assert result.err == ""
    lines = [line.rstrip() for line in result.out.splitlines()]
    assert lines[0].startswith("✗ 1 finding  ·  runs/ill  ·  5 snapshots, steps 0 to 40")
    assert "step 30  ·  not finite" in lines
    assert "seen       model/a: 4 NaN of 24" in lines
    assert "           and 1 more" in lines
    assert "last good  step 20, runs/ill@id:2" in lines
    assert any(line.startswith("next       restore the last good one; ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_json_is_one_document_with_these_fields(ill: Repository, safepoint) -> None:
    result = safepoint("health", "runs/ill", "--json")
    assert result.code == 3
    assert result.err == ""
    document = result.json
    assert list(document) == [
        "repository", "healthy", "num_snapshots", "num_weights", "num_moments", "findings", "notes"
    ]  # fmt: skip
    (finding,) = document["findings"]
    assert finding["kind"] == "not finite"
    assert finding["first"] == {"reference": "runs/ill@id:3", "step": 30}
    assert finding["last_good"] == {"reference": "runs/ill@id:2", "step": 20}
    assert finding["evidence"]["model/e"] == "4 NaN of 24"
    assert finding["advice"]


def test_quiet_prints_kinds_and_references(ill: Repository, safepoint) -> None:
    assert safepoint("health", "runs/ill", "-q").out == "not finite: runs/ill@id:3\n"


def test_a_healthy_run_is_exit_code_zero(run: Repository, safepoint) -> None:
    result = safepoint("health", "runs/digits")
    assert result.code == 0
    assert result.out.startswith("✓ healthy  ·  runs/digits  ·  5 snapshots, steps 9 to 49")
    assert safepoint("health", "runs/digits", "-q").out == ""


def test_what_was_read_once_is_not_read_again_and_snapshots_may_be_passed_over(
    run: Repository, safepoint, monkeypatch
) -> None:
    first = safepoint("health", "runs/digits").out

    def no_reading(*_: object, **__: object) -> None:
        raise AssertionError("a block was read")

    monkeypatch.setattr("safepoint.store.LocalStore.read_into", no_reading)
    assert safepoint("health", "runs/digits").out == first
    assert "3 snapshots between them were not looked at" in safepoint("health", "runs/digits", "--snapshots", 2).out


def test_damage_is_an_error_not_a_finding(run: Repository, safepoint) -> None:
    from tests.cli.conftest import damage

    file = damage(run, 2)
    result = safepoint("health", "runs/digits")
    assert result.code == 5
    assert file in result.err


def test_a_snapshot_that_cannot_be_read_is_told(run: Repository, safepoint) -> None:
    file = next(Path("runs/digits/snapshots").glob("*2.json"))
    file.chmod(0o644)
    file.write_bytes(b"{}")
    result = safepoint("health", "runs/digits")
    assert result.code == 0
    assert "2 snapshots, steps 39 to 49" in result.out
    assert "snapshots/00000002.json is damaged: nothing before it was looked at" in result.out
