"""`safepoint log`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import tree

from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor


def test_the_newest_comes_first_with_the_names_that_hold(run: Repository, safepoint) -> None:
    run.tag("id:1", "release-1")
    lines = safepoint("log", "runs/digits").out.splitlines()
    assert lines[0].startswith("runs/digits  ·  5 snapshots  ·  ")
    table = lines[6:]
    assert table[0].split() == ["id", "step", "saved", "loss", "accuracy", "size", "new"]
    assert [line.split()[:2] for line in table[1:]] == [["4", "49"], ["3", "39"], ["2", "29"], ["1", "19"], ["0", "9"]]
    assert table[1].rstrip().endswith("latest")
    assert table[3].rstrip().endswith("best")
    assert table[4].rstrip().endswith("release-1")


def test_metrics_are_drawn_from_step_to_step_with_their_best_and_the_tags(run: Repository, safepoint) -> None:
    run.tag("id:1", "release-1")
    run.delete("id:2")
    lines = safepoint("log", "runs/digits").out.splitlines()
    assert [line.rstrip() for line in lines[2:5]] == [
        "loss      ▇▄▁▄▇  2.25 → 2.25, best 1.25 at step 19",  # the best one, number 2, was given up
        "accuracy  ▁▁▁▁▁  0.5 → 0.5, best 0.5 at step 9",
        "tags      release-1 (step 19)",
    ]
    document = safepoint("log", "runs/digits", "--json").json
    assert document["best"]["loss"] == {"reference": "runs/digits@id:1", "step": 19, "value": 1.25}
    assert document["tags"] == {"release-1": "runs/digits@id:1"}


def test_what_deduplication_saves_is_said(run: Repository, safepoint) -> None:
    document = safepoint("log", "runs/digits", "--json").json
    assert document["logical_bytes"] == 5 * 42_600
    same = tree(49)
    for step in range(50, 60):
        run.commit(same, step=step)
    first = safepoint("log", "runs/digits").out.splitlines()[0]
    assert first.endswith(" on disk for 639 kB (60 % less)")


def test_a_thousand_snapshots_are_listed_without_opening_a_pack(run: Repository, safepoint, monkeypatch) -> None:
    opened = []
    real = os.open
    monkeypatch.setattr("os.open", lambda path, *rest, **named: opened.append(str(path)) or real(path, *rest, **named))
    assert safepoint("log", "runs/digits").code == 0
    assert not [path for path in opened if "/packs/" in path]
    assert len([path for path in opened if "/snapshots/" in path]) == 5


def test_json_is_one_document_with_these_fields(run: Repository, safepoint) -> None:
    result = safepoint("log", "runs/digits", "--json")
    assert result.err == ""
    document = result.json
    assert list(document) == [
        "repository", "id", "num_snapshots", "num_pruned", "logical_bytes", "stored_bytes", "best", "tags", "snapshots",
        "damaged",
    ]  # fmt: skip
    assert document["repository"] == "runs/digits"
    assert document["num_snapshots"] == 5
    assert document["damaged"] == []
    newest = document["snapshots"][0]
    assert newest == {
        "reference": "runs/digits@id:4",
        "number": 4,
        "step": 49,
        "time": newest["time"],
        "parent": 3,
        "tags": [],
        "metrics": {"loss": 2.25, "accuracy": 0.5},
        "num_tensors": 4,
        "num_bytes": 42_600,
        "written_bytes": newest["written_bytes"],
        "verified": None,
        "pruned": False,
        "named": ["latest"],
        "lineage": True,
    }


def test_quiet_prints_references_only(run: Repository, safepoint) -> None:
    assert safepoint("log", "runs/digits", "-q", "-n", 2).out == "runs/digits@id:4\nruns/digits@id:3\n"


def test_people_see_twenty_and_programs_all(run: Repository, safepoint) -> None:
    for step in range(100, 120):
        run.commit(tree(3), step=step)
    result = safepoint("log", "runs/digits")
    assert "5 older ones not shown (-n 0)" in result.out
    assert len(safepoint("log", "runs/digits", "--json").json["snapshots"]) == 25
    assert "not shown" not in safepoint("log", "runs/digits", "-n", 0).out


def test_pruned_ones_are_hidden_until_asked_for(run: Repository, safepoint) -> None:
    run.delete("id:0")
    assert len(safepoint("log", "runs/digits", "--json").json["snapshots"]) == 4
    assert "pruned" in safepoint("log", "runs/digits", "--pruned").out


def test_another_lineage_is_marked(run: Repository, safepoint) -> None:
    run.commit(tree(1), step=0, parent=None)
    result = safepoint("log", "runs/digits")
    assert "○ 4" in result.out
    assert "not in the lineage of the newest" in result.out


def test_metrics_that_do_not_fit_are_named_and_lines_stay_in_80_columns(run: Repository, safepoint) -> None:
    run.commit(
        tree(1), step=1000, metrics={f"metric_number_{index}": index / 3 for index in range(12)}, tags=["a" * 60]
    )
    result = safepoint("log", "runs/digits")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "also measured: " in result.out


def test_nan_is_a_metric_that_json_can_say(run: Repository, safepoint) -> None:
    run.commit(tree(1), metrics={"loss": float("nan"), "other": float("inf")})
    metrics = safepoint("log", "runs/digits", "--json").json["snapshots"][0]["metrics"]
    assert metrics == {"loss": {"float": "nan"}, "other": {"float": "inf"}}
    assert "nan" in safepoint("log", "runs/digits").out


def test_a_damaged_snapshot_does_not_hide_the_others(run: Repository, safepoint) -> None:
    file = next(Path("runs/digits/snapshots").glob("*2.json"))
    file.chmod(0o644)
    file.write_bytes(b"{}")
    result = safepoint("log", "runs/digits")
    assert result.code == 0
    assert "warning: " in result.err
    document = safepoint("log", "runs/digits", "--json").json
    assert [item["number"] for item in document["damaged"]] == [2]


def test_a_folder_of_runs_says_where_they_are(run: Repository, safepoint) -> None:
    result = safepoint("log", "runs")
    assert result.code == 10
    assert "runs is a folder of runs" in result.err
    assert "runs/digits" in result.err


def test_a_snapshot_is_not_a_run(run: Repository, safepoint) -> None:
    result = safepoint("log", "runs/digits@best")
    assert result.code == 7
    assert "safepoint show runs/digits@best" in result.err


def test_a_file_is_not_a_run(run: Repository, safepoint) -> None:
    Path("file").write_text("x")
    assert safepoint("log", "file").code == 10


def test_a_folder_that_is_no_repository(tmp_path: Path, safepoint) -> None:
    (tmp_path / "file").touch()
    result = safepoint("log", tmp_path)
    assert result.code == 10
    assert "is not a safepoint repository" in result.err


@pytest.mark.parametrize("arguments", [[], ["-q"], ["--json"]])
def test_an_empty_run_is_no_error(tmp_path: Path, safepoint, arguments: list[str]) -> None:
    repository = Repository(tmp_path / "run")
    leaf = Tensor.of(np.zeros(3, np.float32))
    repository.commit(StateTree({"x": leaf}, Branch("dict")))
    for file in (tmp_path / "run" / "snapshots").iterdir():
        file.unlink()
    assert safepoint("log", tmp_path / "run", *arguments).code in {0, 5}


def test_nothing_to_show_says_why(run: Repository, safepoint) -> None:
    for file in Path("runs/digits/snapshots").iterdir():
        file.chmod(0o644)
        file.write_bytes(b"{}")
    assert "no snapshot can be read" in safepoint("log", "runs/digits").out
