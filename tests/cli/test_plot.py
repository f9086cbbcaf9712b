"""`safepoint plot` without matplotlib: the numbers, and what is refused. What it draws: tests/plot."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from safepoint.cli.pictures.numbers import grouped
from safepoint.cli.pictures.treemap import squarify
from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor


@pytest.fixture
def growing(tmp_path, monkeypatch) -> Repository:
    """`a.weight` doubles at each step, `a.bias` begins at zero, `b.weight` stands still."""
    monkeypatch.chdir(tmp_path)
    repository = Repository("runs/growing")
    for step in range(4):
        leaves = {
            "model/a.weight": Tensor.of(np.array([[3.0, 4.0]], np.float32) * 2**step),
            "model/a.bias": Tensor.of(np.full(2, step, np.float32)),
            "model/b.weight": Tensor.of(np.linspace(-1, 1, 101, dtype=np.float32).reshape(1, 101)),
            "optimizer/model/a.weight/exp_avg": Tensor.of(np.ones((1, 2), np.float32)),
        }
        repository.commit(StateTree(leaves, Branch("dict")), step=10 * step, metrics={"loss": 1 / (step + 1)})
    return repository


def test_metrics_with_the_best_and_the_kept(growing: Repository, safepoint) -> None:
    growing.delete("id:1")
    growing.tag("id:2", "good")
    document = safepoint("plot", "runs/growing", "--json", "--kind", "metrics").json
    (loss,) = document["pictures"]["metrics"]["metrics"]
    assert loss["steps"] == [0, 10, 20, 30]
    assert loss["kept"] == [True, False, True, True]
    assert loss["better"] == "min"
    assert loss["best"] == 3
    assert document["pictures"]["metrics"]["tags"] == {"good": 20}
    assert document["file"] is None


def test_weights_are_quantiles_over_steps(growing: Repository, safepoint) -> None:
    found = safepoint("plot", "runs/growing", "--json", "--kind", "weights").json["pictures"]["weights"]
    assert list(found["tensors"]) == ["model/a.weight", "model/a.bias", "model/b.weight"]
    lines = found["tensors"]["model/b.weight"]
    assert len(lines) == len(found["steps"]) == 4
    middle = 1 + found["quantiles"].index(0.5)
    assert (lines[0][0], lines[0][middle], lines[0][-1]) == (-1, pytest.approx(0, abs=1e-6), 1)
    assert lines[0] == lines[3]
    assert found["sampled"] == []


def test_updates_are_the_norm_of_the_difference_by_the_norm_before(growing: Repository, safepoint) -> None:
    found = safepoint("plot", "runs/growing", "--json", "--kind", "updates").json["pictures"]["updates"]
    assert list(found["layers"]) == ["model/a", "model/b"]
    before, difference = [(5, 0), (10, math.sqrt(2)), (20, math.sqrt(8))], [5, 10, 20]
    expected = [5 / 5]  # the bias had no norm yet
    expected += [math.hypot(d, math.sqrt(2)) / math.hypot(*b) for b, d in zip(before[1:], difference[1:], strict=True)]
    assert found["layers"]["model/a"] == pytest.approx(expected)
    assert found["layers"]["model/b"] == [0, 0, 0]


def test_sizes_are_by_layer_and_name_chooses(growing: Repository, safepoint) -> None:
    document = safepoint("plot", "runs/growing@latest", "--json").json
    assert document["pictures"]["sizes"]["layers"] == {
        "model/b": 404, "model/a": 16, "optimizer/model/a.weight": 8
    }  # fmt: skip
    result = safepoint("plot", "runs/growing@latest", "--json", "--layers", "model/b*")
    assert result.json["pictures"]["sizes"]["layers"] == {"model/b": 404}


def test_two_are_compared(growing: Repository, safepoint) -> None:
    found = safepoint("plot", "runs/growing@0", "runs/growing@10", "--json").json["pictures"]["changes"]
    assert found["tensors"] == {"model/a.weight": 1.0, "model/a.bias": None}
    assert found["equal"] == 1


def test_what_was_worked_out_is_not_read_again_and_damage_to_it_is_no_matter(
    growing: Repository, safepoint, monkeypatch
) -> None:
    arguments = ("plot", "runs/growing", "--json", "--kind", "updates")
    first = safepoint(*arguments).out

    def no_reading(*_: object, **__: object) -> None:
        raise AssertionError("a block was read")

    with monkeypatch.context() as patch:
        patch.setattr("safepoint.store.LocalStore.read_into", no_reading)
        assert safepoint(*arguments).out == first
    kept = sorted(Path("runs/growing/derived").iterdir())
    assert kept
    for file in kept:
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert safepoint(*arguments).out == first
    assert safepoint("verify", "runs/growing").code == 0


def test_many_snapshots_are_passed_over_evenly_and_that_is_said(growing: Repository, safepoint) -> None:
    result = safepoint("plot", "runs/growing", "--json", "--kind", "weights", "--snapshots", 2)
    found = result.json["pictures"]["weights"]
    assert found["steps"] == [0, 30]
    assert found["passed_over"] == 2


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["runs/growing"], 2, "-o FILE.png"),
        (["runs/growing", "-o", "x.gif"], 7, ".png, .svg, .pdf, .html"),
        (["runs/growing@0", "-o", "x.png", "--kind", "changes"], 7, "two for changes"),
        (["runs/growing@0", "runs/growing@10", "x", "--json"], 7, "one, or two to compare"),
        (["runs/growing", "-o", "x.png", "--kind", "sizes", "--kind", "metrics"], 7, "-o FILE.html"),
        (["runs/growing", "--json", "--layers", "modle/*", "--kind", "weights"], 4, "matches no name"),
        (["runs/growing@0", "--json", "--kind", "weights"], 7, "a whole run"),
        (["nothing", "--json"], 10, "there is nothing at nothing"),
    ],
)
def test_what_cannot_be_drawn_says_what_can(growing: Repository, safepoint, arguments, code, words) -> None:
    result = safepoint("plot", *arguments)
    assert result.code == code, result.err
    assert result.out == ""
    assert words in result.err


def test_without_matplotlib_it_says_what_to_install(growing: Repository, safepoint, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = safepoint("plot", "runs/growing", "-o", "x.png")
    assert result.code == 7
    assert "pip install 'safepoint[plot]'" in result.err


def test_one_snapshot_has_no_updates(run: Repository, safepoint) -> None:
    for number in range(4):
        run.delete(f"id:{number}")
    result = safepoint("plot", "runs/digits", "--json", "--kind", "updates")
    assert result.code == 10
    assert "has one snapshot" in result.err


def test_layers_are_put_together_until_they_fit() -> None:
    names = [f"model/block.{block}.{part}.{kind}" for block in range(3) for part in "ab" for kind in ("w", "b")]
    assert list(grouped(names, 6)) == [f"model/block.{block}.{part}" for block in range(3) for part in "ab"]
    assert list(grouped(names, 3)) == [f"model/block.{block}" for block in range(3)]
    assert list(grouped(names, 2)) == ["model/block"]
    assert grouped(["x"], 5) == {"x": ["x"]}
    assert grouped([], 5) == {}


@pytest.mark.parametrize("shares", [[1.0], [5.0, 3.0, 1.0], [1.0] * 7, [100.0, *[0.01] * 20], [1e-9, 1e-9]])
def test_tiles_fill_the_picture_and_have_the_areas_of_their_shares(shares: list[float]) -> None:
    tiles = squarify(shares, 7.0, 4.0)
    for share, (x, y, width, height) in zip(shares, tiles, strict=True):
        assert width * height == pytest.approx(28 * share / sum(shares))
        assert -1e-9 <= x <= x + width <= 7 + 1e-9
        assert -1e-9 <= y <= y + height <= 4 + 1e-9
    for i, (x, y, width, height) in enumerate(tiles):
        for left, top, wide, high in tiles[:i]:
            across = min(x + width, left + wide) - max(x, left)
            down = min(y + height, top + high) - max(y, top)
            assert min(across, down) <= 1e-9
