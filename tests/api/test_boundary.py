"""What goes in wrong comes out as safepoint's own error, before anything is changed or committed."""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import signal
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.objects import Counter, arrays, same

import safepoint
from safepoint.repository import Repository
from safepoint.store import MemoryStore


@pytest.fixture
def manager(tmp_path: Path) -> safepoint.CheckpointManager:
    return safepoint.CheckpointManager(safepoint.Checkpoint(state=arrays()), tmp_path / "run")


@pytest.mark.parametrize("metrics", [{"loss": "abc"}, {"loss": None}, {"loss": np.zeros(3)}, {5: 1.0}, {None: 1.0}])
def test_metrics_that_are_none_are_refused(manager: safepoint.CheckpointManager, metrics: dict[Any, Any]) -> None:
    with pytest.raises(safepoint.UnsupportedError):
        manager.save(metrics=metrics)
    with pytest.raises(safepoint.UnsupportedError):
        safepoint.Checkpoint(s={"x": 1}).save(manager.repository, metrics=metrics)
    manager.save(metrics={"loss": 1})
    manager.wait()
    with pytest.raises(safepoint.UnsupportedError):
        manager.repository.add_metrics("latest", metrics)
    assert len(manager.repository.snapshots) == 1


@pytest.mark.parametrize("step", ["a", 1.5, [1], -1, True, 1 << 63, 1 << 70])
def test_a_step_is_a_whole_number(manager: safepoint.CheckpointManager, step: Any) -> None:
    with pytest.raises(safepoint.UnsupportedError, match="whole number"):
        manager.save(step)
    with pytest.raises(safepoint.UnsupportedError, match="whole number"):
        safepoint.Checkpoint(s={"x": 1}).save(manager.repository, step=step)
    with pytest.raises(safepoint.UnsupportedError, match="whole number"):
        manager.should_save(step)
    assert not manager.repository.exists


def test_numpys_integers_are_steps(manager: safepoint.CheckpointManager) -> None:
    manager.save(np.int32(3))
    manager.wait()
    assert [snapshot.step for snapshot in manager.repository.snapshots] == [3]


def test_a_bad_tag_is_refused_before_the_save_begins(manager: safepoint.CheckpointManager) -> None:
    for tag in ("123", "latest", "a/b", ""):
        with pytest.raises(safepoint.UnsupportedError, match="not a tag"):
            manager.save(tags=[tag])


def test_policies_are_checked_when_the_manager_is_made(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(s={"x": 1})
    wrong: list[dict[str, Any]] = [
        {"save": safepoint.EverySteps(2)},
        {"save": [safepoint.Latest(2)]},
        {"keep": [safepoint.EverySteps(2)]},
        {"keep": [3]},
        {"keep": [safepoint.Latest]},
    ]
    for options in wrong:
        with pytest.raises(safepoint.UnsupportedError):
            safepoint.CheckpointManager(checkpoint, tmp_path / "run", **options)
    with pytest.raises(safepoint.UnsupportedError):
        safepoint.Latest("a")  # type: ignore[arg-type]


def test_paths_that_are_none(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(s={"x": 1})
    for path in (tmp_path / ("x" * 300), "nul\0byte"):
        with pytest.raises(safepoint.SafepointError):
            checkpoint.restore(path)
        with pytest.raises(safepoint.SafepointError):
            safepoint.load_model(path)
        with pytest.raises(safepoint.NotFoundError, match="choose another path"):
            safepoint.save_model({}, path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(safepoint.NotFoundError, match="not a file"):
        safepoint.load_model(tmp_path / "fifo")


def test_a_numpy_scalar_cannot_be_restored_in_place() -> None:
    with pytest.raises(safepoint.UnsupportedError, match="put it in a dict"):
        safepoint.Checkpoint(x=np.float32(3))
    with pytest.raises(safepoint.UnsupportedError, match="managers"):
        safepoint.Checkpoint(ranks={})


def test_what_is_not_selected_is_not_touched(tmp_path: Path) -> None:
    def objects(seed: int) -> dict[str, Any]:
        return {"w": arrays(seed), "rng": np.random.default_rng(seed), "py": random.Random(seed), "c": Counter(seed)}

    safepoint.Checkpoint(**objects(1)).save(tmp_path / "run")
    live = objects(2)
    safepoint.Checkpoint(**live).restore(tmp_path / "run", select=["w/*"])
    assert same(live["w"], arrays(1))
    assert live["c"].loads == 0
    assert live["rng"].random() == np.random.default_rng(2).random()
    assert live["py"].random() == random.Random(2).random()
    with pytest.raises(safepoint.MismatchError, match="generator"):
        safepoint.Checkpoint(rng=np.random.default_rng(2)).restore(tmp_path / "run", select=["rng/algorithm"])


def test_select_means_live_names_too(tmp_path: Path) -> None:
    safepoint.Checkpoint(x={"a": np.zeros(1)}).save(tmp_path / "run")
    live = {"a": np.ones(1), "b": np.ones(1)}
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(x=live).restore(tmp_path / "run", select=["x/*"])
    assert caught.value.missing == ("x/b",)
    assert live["a"] == 1


def test_another_tracked_name_is_suggested(tmp_path: Path) -> None:
    safepoint.Checkpoint(models=arrays()).save(tmp_path / "run")
    with pytest.raises(safepoint.MismatchError, match="nearest in the snapshot: models"):
        safepoint.Checkpoint(model=arrays()).restore(tmp_path / "run")


def test_an_adapters_error_names_the_object(tmp_path: Path) -> None:
    safepoint.Checkpoint(dropout=np.random.default_rng(0)).save(tmp_path / "run")
    with pytest.raises(safepoint.MismatchError, match="dropout: a generator of another algorithm"):
        safepoint.Checkpoint(dropout=random.Random(0)).restore(tmp_path / "run")


def test_a_path_with_a_reference_and_at_say_two_things(tmp_path: Path) -> None:
    safepoint.Checkpoint(s={"x": 1}).save(tmp_path / "run")
    with pytest.raises(safepoint.UnsupportedError, match="say it once"):
        safepoint.Checkpoint(s={"x": 1}).restore(f"{tmp_path / 'run'}@0", at=5)


def test_the_same_config_in_other_clothes_is_no_difference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def manager(config: Any) -> safepoint.CheckpointManager:
        return safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", config=config)

    config: dict[str, Any] = {"args": argparse.Namespace(lr=0.1, sizes=(1, 2)), "path": Path("a")}
    first = manager(config)
    config["path"] = Path("changed after the manager was made")
    first.save()
    first.close()
    caplog.set_level(logging.INFO, "safepoint")
    manager({"args": argparse.Namespace(lr=0.1, sizes=(1, 2)), "path": "a"}).resume()
    assert "config." not in caplog.text


def test_a_random_state_that_does_not_fit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = arrays(1)
    first = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run")
    first.save()
    first.close()

    def refuse(_tree: Any) -> None:
        raise RuntimeError("RNG state is wrong size")

    from safepoint.adapters import numpy as adapter
    from safepoint.adapters.protocol import RandomState

    python, numpy = adapter.RANDOM_STATES
    calls = iter([refuse, numpy.restore])  # refuses the snapshot's, takes its own back
    broken = RandomState("numpy", numpy.capture, lambda tree: next(calls)(tree))  # noqa: PLW0108
    monkeypatch.setattr(adapter, "RANDOM_STATES", (python, broken))
    live = arrays(2)
    with pytest.raises(safepoint.MismatchError, match="random state does not fit"):
        safepoint.CheckpointManager(safepoint.Checkpoint(state=live), tmp_path / "run").resume()
    assert same(live, arrays(2))


def test_on_best_remembers_what_was_pruned(tmp_path: Path) -> None:
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", save=[safepoint.OnBest("loss")], keep=[safepoint.Latest(1)]
    )
    saved = []
    for loss in (0.5, 0.1, 0.4, 0.05, 0.3):
        saved.append(manager.save(metrics={"loss": loss}) is not None)
        manager.wait()
    manager.close()
    assert saved == [True, True, False, True, False]


def test_best_can_be_asked_either_way(tmp_path: Path) -> None:
    for score in (2.0, 1.0, 3.0):
        safepoint.Checkpoint(s={"x": 1}).save(tmp_path / "run", metrics={"score": score})
    repository = Repository(tmp_path / "run")
    assert repository.resolve("best:score").step == 2
    assert repository.resolve("best:score:max").step == 2
    assert repository.resolve("best:score:min").step == 1


def test_a_prune_that_fails_does_not_fail_a_durable_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", keep=[safepoint.Latest(1)]
    )

    def full(*_arguments: Any, **_options: Any) -> Any:
        raise safepoint.StoreError("the disk is full")

    monkeypatch.setattr(Repository, "prune", full)
    handle = manager.save()
    assert handle is not None
    assert handle.result() is not None
    manager.close()


@pytest.mark.parametrize("names", [("SIGKILL",), ("SIGFOO",), ("SIGTERM", "SIGFOO")])
def test_signals_that_cannot_be_handled_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(safepoint.UnsupportedError, match="signals="):
        safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", signals=names)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_finishes_the_step_and_the_handlers_go_back_after_the_loop(tmp_path: Path) -> None:
    before: Callable[..., Any] | int | None = signal.getsignal(signal.SIGINT)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", signals=["SIGINT"])
    finished = []
    for step in manager.steps(10):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        finished.append(step)
    assert finished == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    assert [s.step for s in manager.repository.snapshots] == [3]


def test_a_misspelt_metric_prunes_nothing(tmp_path: Path) -> None:
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", keep=[safepoint.Best(1, "lss")]
    )
    for loss in (0.3, 0.1, 0.2):
        manager.save(metrics={"loss": loss})
    manager.close()
    assert len(manager.repository.snapshots) == 3


def test_a_repository_that_lost_its_id_is_no_new_run(tmp_path: Path) -> None:
    safepoint.Checkpoint(s={"x": 1}).save(tmp_path / "run")
    (tmp_path / "run" / "safepoint.json").unlink()
    with pytest.raises(safepoint.NotFoundError, match=r"safepoint\.json"):
        safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run").resume()


def test_threads_that_save_take_turns(tmp_path: Path) -> None:
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": np.zeros(1000)}), tmp_path / "run", keep=[])
    threads = [threading.Thread(target=lambda: [manager.save() for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manager.close()
    assert len(manager.repository.snapshots) == 20


def test_other_peoples_files_are_called_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04" + b"x" * 100)
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02")
    for name, word in (("weights.pkl", "a pickle"), ("weights.pt", "a PyTorch file")):
        with pytest.raises(safepoint.CorruptionError, match="is damaged"):
            safepoint.Checkpoint(s={"x": 1}).restore(tmp_path / name)
        with pytest.raises(safepoint.UnsupportedError, match=word):
            safepoint.load_model(tmp_path / name)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_none(length: int, tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    data = length.to_bytes(8, "little") + header + np.ones(2, np.float32).tobytes()
    (tmp_path / "weights").write_bytes(data)
    live = {"x": np.zeros(2, np.float32)}
    safepoint.Checkpoint(s=live).restore(tmp_path / "weights")
    assert live["x"].tolist() == [1, 1]


def test_an_empty_file_and_a_text_file_are_called_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(safepoint.CorruptionError, match="is an empty file"):
        safepoint.Checkpoint(s={"x": 1}).restore(tmp_path / "model")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "größe": 3}')
    with pytest.raises(safepoint.CorruptionError, match="is a text file") as caught:
        safepoint.Checkpoint(s={"x": 1}).restore(tmp_path / "config.json")
    assert "model_type" in str(caught.value)


WRONG_TYPES: dict[str, Callable[[Any, Any, Path], Any]] = {
    "Checkpoint needs a name for what it saves": lambda c, m, path: safepoint.Checkpoint(),
    "such as Checkpoint(model=model)": lambda c, m, path: safepoint.Checkpoint({"w": np.zeros(1)}),
    "at a path, which None is not": lambda c, m, path: c.save(None),
    "at a path, which 3 is not": lambda c, m, path: c.restore(3),
    "rename must map": lambda c, m, path: c.restore(path, rename="x"),
    "rename must map regular": lambda c, m, path: c.restore(path, rename={"x": 3}),
    "select must be a list": lambda c, m, path: c.restore(path, select=3),
    "select must be": lambda c, m, path: m.restore(select=[3]),
    "optional must be a list": lambda c, m, path: c.restore(path, optional=3),
    "keep_live must be": lambda c, m, path: m.resume(keep_live=3),
    "not 'a'": lambda c, m, path: next(m.steps("a")),
    "metrics must map": lambda c, m, path: m.save(metrics=3),
    "metrics must map names": lambda c, m, path: c.save(path, metrics=[0.5]),
    "tags must be a list": lambda c, m, path: m.save(tags=3),
    "tags must be": lambda c, m, path: c.save(path, tags=[3]),
    "needs a Checkpoint": lambda c, m, path: safepoint.CheckpointManager({"x": 1}, path),  # type: ignore[arg-type]
    "which None": lambda c, m, path: safepoint.CheckpointManager(c, None),  # type: ignore[arg-type]
    "signals must be": lambda c, m, path: safepoint.CheckpointManager(c, path, signals=3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message, call", WRONG_TYPES.items(), ids=WRONG_TYPES)
def test_an_argument_of_the_wrong_type_is_told_what_was_expected(message: str, call: Any, tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(s={"x": 1})
    checkpoint.save(tmp_path / "run")
    with pytest.raises(TypeError, match=re.escape(message)) as caught:
        call(checkpoint, safepoint.CheckpointManager(checkpoint, tmp_path / "run"), tmp_path / "run")
    assert Path(str(caught.traceback[-1].path)).name in {
        "arguments.py", "asked.py", "checkpoint.py", "manager.py", "repository.py",
    }  # fmt: skip
    assert len(safepoint.Repository(tmp_path / "run").snapshots) == 1


def test_one_tag_is_one_tag(tmp_path: Path) -> None:
    assert safepoint.Checkpoint(s={"x": 1}).save(tmp_path / "run", tags="start").tags == ("start",)


def test_a_closed_manager_saves_no_more(manager: safepoint.CheckpointManager) -> None:
    with manager:
        manager.save()
    for call in (manager.save, manager.resume, lambda: next(manager.steps(3))):
        with pytest.raises(safepoint.UnsupportedError, match="was closed"):
            call()
    manager.close()
    assert len(manager.repository.snapshots) == 1


def test_a_pattern_that_matches_nothing_names_the_nearest(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(model={"weight": np.zeros(2)}, old={"x": np.zeros(1)})
    checkpoint.save(tmp_path / "run")
    wrong: dict[str, dict[str, Any]] = {
        "optional='model/wieght' matches no name": {"optional": ["model/wieght"]},
        "select='model/wieght' matches no name": {"select": ["model/wieght"]},
        "rename='model/wieght' is found in no name": {"rename": {"model/wieght": "x"}},
    }
    for message, options in wrong.items():
        with pytest.raises(safepoint.MismatchError, match=message) as caught:
            checkpoint.restore(tmp_path / "run", **options)
        assert caught.value.hint == "did you mean 'model/weight'?"
    with pytest.raises(safepoint.MismatchError, match=r"select=\[\] means nothing"):
        checkpoint.restore(tmp_path / "run", select=[])
    alone = safepoint.Checkpoint(model={"weight": np.zeros(2)})
    with pytest.raises(safepoint.MismatchError, match="matches no name"):
        alone.restore(tmp_path / "run", select=["old/*"])  # it is in the snapshot, and nothing here would take it


def test_time_per_save_does_not_grow_with_what_was_pruned() -> None:
    store = _CountingStore()
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(s={"x": 1}),
        Repository(store),
        keep=[safepoint.Latest(2)],  # type: ignore[arg-type]
    )
    reads = []
    for _ in range(60):
        store.reads = 0
        manager.save()
        manager.wait()
        reads.append(store.reads)
    manager.close()
    assert max(reads[-10:]) <= max(reads[5:15])


class _CountingStore:
    """A memory store that counts the documents read."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        self.reads += 1
        return self._store.read(name, at_most=at_most)


def test_a_snapshot_found_damaged_is_not_the_verified_one_any_more(tmp_path: Path) -> None:
    state = {"w": np.zeros(1000)}
    for _ in range(2):
        state["w"] += 1
        safepoint.Checkpoint(s=state).save(tmp_path / "run")
    repository = Repository(tmp_path / "run")
    assert repository.verify().ok
    assert all(snapshot.verified for snapshot in repository.snapshots)
    newest = max((tmp_path / "run" / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    assert not repository.verify().ok
    assert [bool(snapshot.verified) for snapshot in Repository(tmp_path / "run").snapshots] == [True, False]
