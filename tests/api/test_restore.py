"""Restore: all or nothing, one error for every difference, and every way to take a part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.objects import Counter, Refusing, arrays, same, write_strangers_file

import safepoint


@pytest.fixture(params=["staged", "two passes", "undone"], autouse=True)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states are staged, large ones read twice, or once from a disk: all must keep every promise."""
    if request.param != "staged":
        monkeypatch.setattr("safepoint.api.restore._STAGED_BYTES", 0)
        monkeypatch.setattr("safepoint.repository.Manifest.waits", lambda *_: request.param == "undone")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    safepoint.Checkpoint(state=arrays(1), counter=Counter(7)).save(tmp_path / "run", metrics={"loss": 0.5})
    return tmp_path / "run"


def test_one_error_lists_every_difference_and_nothing_changes(run: Path) -> None:
    live = {"weight": np.zeros((4, 4), np.float32), "biass": np.zeros(3, np.float32), "epoch": 0, "history": []}
    counter = Counter(0)
    before = copy.deepcopy(live)
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(state=live, counter=counter).restore(run)
    error = caught.value
    assert error.missing == ("state/biass",)
    assert error.unexpected == ("state/bias",)
    assert list(error.differs) == ["state/weight"]
    assert "nearest in the snapshot: state/bias" in str(error)
    assert "live float32[4, 4], saved float32[4, 3]" in str(error)
    assert same(live, before)
    assert counter.loads == 0


def test_an_object_that_refuses_its_state_rolls_everything_back(run: Path) -> None:
    live, first, second = arrays(2), Counter(3), Refusing(4)
    safepoint.Checkpoint(state=arrays(1), a=Counter(7), b=Counter(8)).save(run.parent / "other")
    before = copy.deepcopy(live)
    with pytest.raises(safepoint.MismatchError, match="b: load_state_dict refused") as caught:
        safepoint.Checkpoint(state=live, a=first, b=second).restore(run.parent / "other")
    assert "KeyError" in str(caught.value)
    assert same(live, before)
    assert (first.count, second.count) == (3, 4)


def test_damage_is_found_before_anything_changes(run: Path) -> None:
    (pack,) = (run / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    live, counter = arrays(2), Counter(0)
    before = copy.deepcopy(live)
    with pytest.raises(safepoint.CorruptionError) as caught:
        safepoint.Checkpoint(state=live, counter=counter).restore(run)
    assert caught.value.file == f"packs/{pack.name}"
    assert caught.value.name in {"state/weight", "state/bias"}
    assert same(live, before)
    assert counter.loads == 0


def test_names_that_only_the_snapshot_tracks_are_ignored_and_listed(run: Path) -> None:
    report = safepoint.Checkpoint(state=arrays(2)).restore(run)
    assert report.ignored == ("counter/count",)
    assert "state/weight" in report.matched


def test_a_tracked_name_that_the_snapshot_lacks_is_an_error_unless_optional(run: Path) -> None:
    extra = {"x": np.zeros(2)}
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(state=arrays(2), extra=extra).restore(run)
    assert caught.value.missing == ("extra",)
    report = safepoint.Checkpoint(state=arrays(2), extra=extra).restore(run, optional=["extra"])
    assert "state/weight" in report.matched


def test_strict_false_takes_what_fits_and_reports_the_rest(run: Path) -> None:
    live = {"weight": np.zeros((9, 9), np.float32), "bias": np.zeros(3, np.float32), "new": np.ones(1), "epoch": 0}
    report = safepoint.Checkpoint(state=live).restore(run, strict=False)
    assert list(report.reshaped) == ["state/weight"]
    assert report.missing == ("state/new",)
    assert np.array_equal(live["bias"], arrays(1)["bias"])
    assert not live["weight"].any()


def test_a_report_tells_in_words_what_was_done(run: Path) -> None:
    live: dict[str, Any] = {
        "weight": np.zeros((9, 9), np.float32), "bias": np.zeros(3, np.float16), "new": np.ones(1), "epoch": 0,
    }  # fmt: skip
    checkpoint = safepoint.Checkpoint(state=live)
    text = str(checkpoint.restore(run, strict=False))
    assert text.splitlines() == [
        f"restored 3 of 6 names from {run}, step 0",
        "  left as they were: another shape: state/weight (here float32[9, 9], saved float32[4, 3])",
        "  left as they were: another dtype, cast=True converts: state/bias (here float16[3], saved float32[3])",
        "  left as they were: not in the snapshot: state/new",
        "  in the snapshot only, not used: counter (all of it)",
    ]  # fmt: skip
    text = str(checkpoint.restore(run, strict=False, cast=True))
    assert "restored 4 of 6 names" in text
    assert "  converted: state/bias (here float16[3], saved float32[3])" in text


def test_a_report_of_a_whole_restore_is_one_line(run: Path) -> None:
    report = safepoint.Checkpoint(state=arrays(2), counter=Counter()).restore(run)
    assert str(report) == f"restored all 6 names from {run}, step 0"
    many = {str(index): np.zeros(1) for index in range(9)}
    report = safepoint.Checkpoint(state={**arrays(2), **many}).restore(run, strict=False)
    assert "not in the snapshot: state/0, state/1, state/2, state/3 and 5 more" in str(report)


def test_select_takes_a_part(run: Path) -> None:
    live = arrays(2)
    report = safepoint.Checkpoint(state=live).restore(run, select=["state/w*"])
    assert report.matched == ("state/weight",)
    assert np.array_equal(live["weight"], arrays(1)["weight"])
    assert np.array_equal(live["bias"], arrays(2)["bias"])
    assert live["epoch"] == 2


def test_select_that_matches_nothing_is_an_error(run: Path) -> None:
    with pytest.raises(safepoint.MismatchError, match="did you mean 'state/weight'"):
        safepoint.Checkpoint(state=arrays(2)).restore(run, select=["state/weigth"])


def test_rename_maps_saved_names(run: Path) -> None:
    live = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32), "epoch": 0, "history": []}
    safepoint.Checkpoint(net=live).restore(run, rename={"^state/": "net/", "weight$": "kernel"})
    assert np.array_equal(live["kernel"], arrays(1)["weight"])
    assert live["history"] == arrays(1)["history"]
    assert "weight" not in live


def test_rename_that_makes_two_names_one_is_an_error(run: Path) -> None:
    with pytest.raises(safepoint.MismatchError, match="two names"):
        safepoint.Checkpoint(state=arrays(2)).restore(run, rename={"weight|bias": "x"})
    with pytest.raises(safepoint.UnsupportedError, match="regular expression"):
        safepoint.Checkpoint(state=arrays(2)).restore(run, rename={"(": "x"})


def test_cast_permits_another_dtype(run: Path) -> None:
    live: dict[str, Any] = {**arrays(2), "weight": np.zeros((4, 3), np.float64)}
    with pytest.raises(safepoint.MismatchError, match="cast=True"):
        safepoint.Checkpoint(state=live).restore(run)
    report = safepoint.Checkpoint(state=live).restore(run, cast=True)
    assert list(report.retyped) == ["state/weight"]
    assert live["weight"].dtype == np.float64
    assert np.array_equal(live["weight"], arrays(1)["weight"].astype(np.float64))


def test_in_place_reads_straight_into_live_memory(run: Path) -> None:
    live, counter = arrays(2), Counter(0)
    weight = live["weight"]
    safepoint.Checkpoint(state=live, counter=counter).restore(run, in_place=True)
    assert live["weight"] is weight
    assert same(live, arrays(1))
    assert counter.count == 7


def test_in_place_tells_when_it_was_interrupted(run: Path) -> None:
    (pack,) = (run / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    with pytest.raises(safepoint.RestoreInterrupted):
        safepoint.Checkpoint(state=arrays(2)).restore(run, in_place=True)


def test_references_in_the_path_and_in_at(run: Path) -> None:
    safepoint.Checkpoint(state=arrays(3), counter=Counter(9)).save(run, metrics={"loss": 0.9}, tags=["worse"])
    for source, at, seed in [
        (run, "latest", 3),
        (f"{run}@best", "latest", 1),
        (run, "best:loss", 1),
        (f"{run}@worse", "latest", 3),
        (run, 0, 1),
        (run, "id:1", 3),
    ]:
        live = arrays(5)
        safepoint.Checkpoint(state=live).restore(source, at=at)
        assert live["epoch"] == seed


def test_what_is_not_there_is_a_typed_error(tmp_path: Path, run: Path) -> None:
    checkpoint = safepoint.Checkpoint(state=arrays(2))
    with pytest.raises(safepoint.NotFoundError, match="nothing at"):
        checkpoint.restore(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(safepoint.NotFoundError, match="not a safepoint repository"):
        checkpoint.restore(tmp_path / "folder")
    with pytest.raises(safepoint.NotFoundError, match="steps 0"):
        checkpoint.restore(run, at=99)


def test_a_list_takes_the_saved_length(run: Path) -> None:
    live = arrays(2)
    live["history"] = [0.0] * 10
    history = live["history"]
    safepoint.Checkpoint(state=live).restore(run)
    assert history == arrays(1)["history"]


def test_a_large_state_is_streamed_through_a_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    saved = {str(index): rng.standard_normal((1 << 20) + index) for index in range(24)}
    safepoint.Checkpoint(state=saved).save(tmp_path / "run")
    live = {name: np.zeros_like(array)[::-1] for name, array in saved.items()}  # reversed: no memory to read into
    calls: list[tuple[int, int]] = []
    safepoint.Checkpoint(state=live).restore(tmp_path / "run", progress=lambda *call: calls.append(call))
    assert all(np.array_equal(live[name], saved[name]) for name in saved)
    assert calls[-1][0] == calls[-1][1]


def test_a_strangers_tensors_go_into_nested_containers_by_name(tmp_path: Path) -> None:
    write_strangers_file(tmp_path / "weights", {"encoder/w": np.ones(2), "layers/1": np.full(3, 2.0)})
    live: dict[str, Any] = {"encoder": {"w": np.zeros(2)}, "layers": [np.zeros(1), np.zeros(3)]}
    encoder = live["encoder"]["w"]
    report = safepoint.Checkpoint(params=live).restore(tmp_path / "weights", strict=False)
    assert report.matched == ("params/encoder/w", "params/layers/1")
    assert live["encoder"]["w"] is encoder
    assert encoder.tolist() == [1, 1]
    assert [array.tolist() for array in live["layers"]] == [[0], [2, 2, 2]]


@pytest.mark.parametrize("how", [{}, {"in_place": True}], ids=["all or nothing", "in place"])
def test_two_contents_for_one_memory_are_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    """Whatever the size, and across tracked objects: one of them would win without a word."""
    safepoint.Checkpoint(a={"w": np.zeros(4)}, b={"w": np.ones(4)}).save(tmp_path / "apart")
    same_weight = np.full(4, 2.0)
    safepoint.Checkpoint(a={"w": same_weight}, b={"w": same_weight}).save(tmp_path / "tied")
    shared = np.full(4, 5.0)
    checkpoint = safepoint.Checkpoint(a={"w": shared}, b={"w": shared})
    with pytest.raises(safepoint.MismatchError, match="a/w and b/w are one tensor in the live objects"):
        checkpoint.restore(tmp_path / "apart", **how)
    assert shared.tolist() == [5] * 4
    checkpoint.restore(tmp_path / "apart", select=["b/w"], **how)
    assert shared.tolist() == [1] * 4
    checkpoint.restore(tmp_path / "tied", **how)
    assert shared.tolist() == [2] * 4


def test_two_contents_for_one_memory_in_a_strangers_file_are_refused(tmp_path: Path) -> None:
    write_strangers_file(tmp_path / "weights", {"a": np.zeros(4), "b": np.ones(4)})
    shared = np.full(4, 5.0)
    with pytest.raises(safepoint.MismatchError, match="are one tensor"):
        safepoint.Checkpoint(x={"a": shared, "b": shared}).restore(tmp_path / "weights")
    assert shared.tolist() == [5] * 4


def test_a_glob_over_an_absent_object_makes_it_optional(run: Path) -> None:
    extra = {"x": np.zeros(2), "y": np.zeros(2)}
    checkpoint = safepoint.Checkpoint(state=arrays(2), extra=extra)
    assert checkpoint.restore(run, optional=["extra/*"]).missing == ("extra",)
    with pytest.raises(safepoint.MismatchError):
        checkpoint.restore(run, optional=["extra/x"])


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_not_memory_is_restored_beside_what_is(tmp_path: Path, *, in_place: bool) -> None:
    """NumPy's scalars are new values; a list that was empty is emptied, though it has no leaf that says so."""
    safepoint.Checkpoint(state={"w": np.ones(9), "rate": np.float32(3)}).save(tmp_path / "scalar")
    safepoint.Checkpoint(state={"w": np.ones(9), "history": []}).save(tmp_path / "list")
    scalar: dict[str, Any] = {"w": np.zeros(9), "rate": np.float32(0)}
    listed: dict[str, Any] = {"w": np.zeros(9), "history": [1.0]}
    safepoint.Checkpoint(state=scalar).restore(tmp_path / "scalar", in_place=in_place)
    safepoint.Checkpoint(state=listed).restore(tmp_path / "list", in_place=in_place)
    assert (scalar["rate"], type(scalar["rate"])) == (3, np.float32)
    assert listed["history"] == []
    assert scalar["w"].all()
    assert listed["w"].all()
