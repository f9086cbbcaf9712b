"""`safepoint prune`."""

from __future__ import annotations

import pytest
from tests.cli.conftest import tree

from safepoint.repository import Repository


def test_without_yes_it_tells_what_would_go_and_why(run: Repository, safepoint) -> None:
    run.tag("id:1", "x")
    result = safepoint("prune", "runs/digits", "--keep-latest", 2, "--keep-best", "1:loss")
    rows = [line.split()[0] + " " + " ".join(line.split()[7:]) for line in result.out.splitlines()[1:6]]
    assert rows == [
        "4 keep the newest, latest 2",
        "3 keep latest 2",
        "2 keep best 1 by loss",
        "1 keep tagged x",
        "0 prune nothing keeps it",
    ]
    assert "1 snapshot of 5 would be pruned; add --yes" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert len(Repository("runs/digits").snapshots) == 5


def test_with_yes_it_prunes(run: Repository, safepoint) -> None:
    result = safepoint("prune", "runs/digits", "--keep-latest", 1, "--yes")
    assert "4 snapshots pruned; free the space: safepoint collect runs/digits" in result.out
    assert [s.number for s in Repository("runs/digits").snapshots] == [4]


def test_json(run: Repository, safepoint) -> None:
    document = safepoint("prune", "runs/digits", "--keep-every", 20, "--json").json
    assert list(document) == ["repository", "dry_run", "pruned", "kept"]
    assert document["dry_run"] is True
    assert [s["number"] for s in document["pruned"]] == [1, 3]
    assert [(s["number"], s["reasons"]) for s in document["kept"]] == [
        (0, ["every 20"]),
        (2, ["every 20"]),
        (4, ["the newest", "every 20"]),
    ]
    done = safepoint("prune", "runs/digits", "--keep-every", 20, "--yes", "--json").json
    assert [s["number"] for s in done["pruned"]] == [s["number"] for s in document["pruned"]]


def test_quiet_prints_what_goes(run: Repository, safepoint) -> None:
    result = safepoint("prune", "runs/digits", "--keep-latest", 4, "-q")
    assert result.out == "runs/digits@id:0\n"


def test_an_empty_policy_is_refused(run: Repository, safepoint) -> None:
    result = safepoint("prune", "runs/digits", "--yes")
    assert result.code == 2
    assert "say what to keep" in result.err
    assert len(Repository("runs/digits").snapshots) == 5


@pytest.mark.parametrize("best", ["loss", "0:loss", "-1", "x:y", "²"])
def test_a_best_that_is_no_number_is_refused(run: Repository, safepoint, best: str) -> None:
    assert safepoint("prune", "runs/digits", f"--keep-best={best}").code == 2


def test_within_hours(run: Repository, safepoint) -> None:
    run.commit(tree(1))  # by the real clock, the others are of January
    document = safepoint("prune", "runs/digits", "--keep-within", "1.5", "--json").json
    assert [(s["number"], s["reasons"]) for s in document["kept"]] == [(5, ["the newest", "within 1.5 h"])]
