"""What a repository promises about history, marks, references, pruning and collection."""

from __future__ import annotations

import dataclasses
import enum
import os
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import (
    ConflictError,
    CorruptionError,
    ExistsError,
    NotFoundError,
    SafepointError,
    StoreError,
    UnsupportedError,
)
from safepoint.repository import Repository, Snapshot
from safepoint.repository.schema import FORMAT_VERSION, FormatDocument, encode_sealed
from safepoint.store import LocalStore, MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


class Keep:
    def __init__(self, *numbers: int) -> None:
        self.numbers = set(numbers)

    def keep(self, history: Any, now: datetime) -> set[int]:
        return self.numbers


@pytest.fixture
def repository() -> Repository:
    return Repository(MemoryStore(), clock=Clock())


def save(repository: Repository, step: int, **options: Any) -> Snapshot:
    state = {"w": np.full(2000, step, np.float64), "step": step}
    return repository.commit(tree_of(state), step=step, **options)


def saved(repository: Repository, count: int) -> Repository:
    for step in range(count):
        save(repository, step)
    return repository


def numbers(repository: Repository) -> list[int]:
    return [snapshot.number for snapshot in repository.snapshots]


# -- history and references ----------------------------------------------------------------------------------------


def test_a_place_with_nothing_is_not_found(tmp_path: Path) -> None:
    for repository in (Repository(tmp_path / "nowhere"), Repository(MemoryStore())):
        assert not repository.exists
        for question in (repository.history, repository.resolve, repository.collect, repository.verify):
            with pytest.raises(NotFoundError, match="there is nothing"):
                question()
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("mine")
    repository = Repository(tmp_path)
    with pytest.raises(ExistsError, match="not empty"):
        save(repository, 0)
    with pytest.raises(NotFoundError, match="not a safepoint repository"):
        repository.resolve()
    assert os.listdir(tmp_path) == ["model.pt"]  # noqa: PTH208


def test_an_empty_folder_and_what_a_killed_first_save_left_are_fine(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123456789abcdef").write_text("left")
    (tmp_path / "lock").touch()
    save(Repository(tmp_path), 0)
    assert numbers(Repository(tmp_path)) == [0]


def test_steps_count_on_from_the_parent(repository: Repository) -> None:
    assert repository.commit(tree_of({})).step == 0
    assert repository.commit(tree_of({}), step=41).step == 41
    assert repository.commit(tree_of({})).step == 42
    assert repository.commit(tree_of({}), step=np.int64(50)).step == 50
    assert repository.commit(tree_of({}), parent=None).step == 0


def test_everything_told_at_a_save_is_in_the_history(repository: Repository) -> None:
    config = {"lr": 1e-3, "layers": [1, 2], "path": Path("a/b"), "none": None, "big": 2**80, "inf": float("inf")}
    metrics = {"loss": np.float32(0.5), "nan": float("nan"), "n": 3}
    save(repository, 3, metrics=metrics, config=config, tags=["a", "b", "a"], environment={"python": "3.11"})
    snapshot = Repository(repository.store).resolve()
    assert (snapshot.step, snapshot.tags, snapshot.environment) == (3, ("a", "b"), {"python": "3.11"})
    assert snapshot.metrics["loss"] == 0.5
    assert np.isnan(snapshot.metrics["nan"])
    assert snapshot.config == {**config, "path": "a/b"}
    assert (snapshot.num_tensors, snapshot.num_bytes) == (1, 16_000)
    assert snapshot.time == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
    assert not snapshot.pruned
    assert snapshot.verified is None


def test_every_kind_of_reference(repository: Repository) -> None:
    save(repository, 10, metrics={"loss": 3.0})
    save(repository, 20, metrics={"loss": 1.0, "accuracy": 0.1}, tags=["good"])
    save(repository, 30, metrics={"loss": 2.0, "accuracy": 0.9})
    wanted = {"latest": 2, "best": 1, "best:loss": 1, "best:accuracy": 2, "20": 1, 10: 0, "id:2": 2, "good": 1}
    assert {reference: repository.resolve(reference).number for reference in wanted} == wanted
    for missing in ("40", "id:7", "nothing", "best:nothing", "-1", "²", "id:²", "id:", "", "best:"):
        if missing == "best:":
            continue
        with pytest.raises(NotFoundError):
            repository.resolve(missing)


@pytest.mark.parametrize(
    "tag", ["", "123", "latest", "best", "a b", "a/b", "best:x", "id:1", "ä", "a" * 101, "..", "a@b", "\n"]
)
def test_what_could_be_another_reference_is_no_tag(repository: Repository, tag: str) -> None:
    save(repository, 0)
    with pytest.raises(UnsupportedError):
        repository.tag("latest", tag)
    with pytest.raises(UnsupportedError):
        save(repository, 1, tags=[tag])
    assert numbers(repository) == [0]


def test_latest_and_best_follow_the_newest_lineage(repository: Repository) -> None:
    save(repository, 0, metrics={"loss": 0.1})
    save(repository, 0, metrics={"loss": 5.0}, parent=None)
    save(repository, 1, metrics={"loss": 4.0})
    assert repository.resolve("best").number == 2
    assert repository.resolve("0").number == 1
    assert repository.resolve("id:0").step == 0


def test_a_save_that_expects_another_newest_is_a_conflict_and_writes_nothing(repository: Repository) -> None:
    saved(repository, 2)
    before = set(repository.store.files)
    for expected in (0, None, 7):
        with pytest.raises(ConflictError, match="in between"):
            save(repository, 9, parent=0, newest=expected)
    assert set(repository.store.files) == before
    assert save(repository, 9, parent=1, newest=1).number == 2


# -- marks ---------------------------------------------------------------------------------------------------------


def test_a_tag_names_one_snapshot_until_it_is_taken_away(repository: Repository) -> None:
    saved(repository, 3)
    assert repository.tag("0", "x").tags == ("x",)
    assert repository.tag("0", "x").tags == ("x",)
    with pytest.raises(ExistsError, match="names snapshot 0"):
        repository.tag("1", "x")
    with pytest.raises(ExistsError):
        save(repository, 3, tags=["x"])
    assert repository.untag("x").tags == ()
    with pytest.raises(NotFoundError):
        repository.untag("x")
    assert repository.tag("1", "x").number == 1


def test_late_metrics_stay_through_later_marks(repository: Repository) -> None:
    save(repository, 0, metrics={"loss": 1.0})
    repository.add_metrics("latest", {"accuracy": 0.5, "loss": 2.0})
    repository.tag("latest", "x")
    repository.add_metrics("latest", {"nan": float("nan")})
    repository.tag("latest", "y")
    metrics = Repository(repository.store).resolve().metrics
    assert {name: repr(value) for name, value in metrics.items()} == {
        "loss": "2.0", "accuracy": "0.5", "nan": "nan",
    }  # fmt: skip


def test_a_metric_must_be_a_number(repository: Repository) -> None:
    save(repository, 0)
    for value in ("x", None, [1], object()):
        with pytest.raises(UnsupportedError, match="'loss' is not a number"):
            repository.add_metrics("latest", {"loss": value})
        with pytest.raises(UnsupportedError):
            save(repository, 1, metrics={"loss": value})
    assert numbers(repository) == [0]


def test_a_tag_given_meanwhile_saves_a_snapshot_from_pruning(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between choosing and marking, another process tags what was chosen."""
    saved(repository, 4)
    other = Repository(repository.store)
    from safepoint.repository import collect

    real = collect.choose

    def choose(*arguments: Any) -> list[Snapshot]:
        chosen = real(*arguments)
        other.tag("1", "precious")
        return chosen

    monkeypatch.setattr(collect, "choose", choose)
    assert [snapshot.number for snapshot in repository.prune([Keep()], dry_run=False)] == [0, 2]
    assert numbers(repository) == [1, 3]


def test_a_snapshot_pruned_meanwhile_cannot_be_tagged(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(repository, 2)
    snapshot = repository.resolve("0")
    Repository(repository.store).delete("0")
    monkeypatch.setattr(repository, "resolve", lambda _reference: snapshot)
    with pytest.raises(NotFoundError, match="pruned meanwhile"):
        repository.tag("0", "late")


# -- pruning and collection ----------------------------------------------------------------------------------------


def test_newest_newest_verified_and_tagged_are_never_pruned(repository: Repository) -> None:
    saved(repository, 3)
    repository.verify("1")
    saved_late = save(repository, 3)
    repository.tag("0", "kept")
    save(repository, 4)
    for protected in ("0", "1", "4"):
        with pytest.raises(UnsupportedError, match="cannot be deleted"):
            repository.delete(protected)
    would = repository.prune([Keep()])
    assert [snapshot.number for snapshot in would] == [2, saved_late.number]
    assert numbers(repository) == [0, 1, 2, 3, 4]
    assert repository.prune([Keep()], dry_run=False) == [*map(repository.history()[0].get, [2, 3])]
    assert numbers(repository) == [0, 1, 4]
    repository.verify("latest")
    repository.delete("1")
    assert repository.collect() > 0
    for number in numbers(repository):
        assert load(repository, f"id:{number}")["step"] == number


def test_no_policy_keeps_everything(repository: Repository) -> None:
    saved(repository, 3)
    assert repository.prune([], dry_run=False) == []
    assert numbers(repository) == [0, 1, 2]


def test_another_lineage_is_not_pruned(repository: Repository) -> None:
    saved(repository, 2)
    save(repository, 0, parent=None)
    save(repository, 1)
    repository.prune([Keep()], dry_run=False)
    assert numbers(repository) == [0, 1, 3]


def test_a_pruned_snapshot_says_so_and_its_number_is_not_used_again(repository: Repository) -> None:
    saved(repository, 3)
    repository.delete("1")
    for reference in ("1", "id:1"):
        with pytest.raises(NotFoundError, match="was pruned"):
            repository.resolve(reference)
    repository.collect()
    assert save(repository, 9).number == 3
    with pytest.raises(NotFoundError):
        repository.delete("1")


def test_collection_frees_what_nobody_needs_and_only_that(tmp_path: Path) -> None:
    repository = saved(Repository(tmp_path), 3)
    (tmp_path / "packs" / "README.txt").write_text("mine")
    (tmp_path / "packs" / "model.safetensors").write_text("mine too")
    (tmp_path / "packs" / "0123.safetensors").mkdir()
    repository.delete("0")
    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    freed = repository.collect()
    assert freed == before - sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 16_000
    assert (tmp_path / "packs" / "model.safetensors").read_text() == "mine too"
    assert repository.collect() == 0
    assert repository.verify().ok


def test_busy_means_next_time(repository: Repository) -> None:
    saved(repository, 2)
    repository.delete("0")
    files = dict(repository.store.files)
    with repository.reading(), pytest.raises(ConflictError):
        repository.collect()
    assert repository.store.files == files
    assert repository.collect() > 0


@pytest.mark.parametrize(
    "victim", ["snapshots/00000001.json", "snapshots/00000002.json", "marks/00000001-0.json", "manifest"]
)
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_collector_that_cannot_read_everything_deletes_nothing(victim: str, damage: str) -> None:
    store = MemoryStore()
    repository = saved(Repository(store), 4)
    repository.tag("1", "x")
    repository.delete("0")
    if victim == "manifest":
        victim = f"manifests/{repository.resolve('1').manifest.id}.json"
    if damage == "flipped":
        store.files[victim] = store.files[victim][:-20] + b"?" + store.files[victim][-19:]
    else:
        del store.files[victim]
    lost = damage == "missing" and victim.startswith("marks")
    files = dict(store.files)
    if lost:  # nobody can know that there was one; but nothing that was needed goes
        Repository(store).collect()
        assert load(Repository(store), "id:1")["step"] == 1
        return
    with pytest.raises(CorruptionError):
        Repository(store).collect()
    assert store.files == files


def test_a_pruned_snapshot_may_be_damaged() -> None:
    store = MemoryStore()
    saved(Repository(store), 3).delete("1")
    store.files["snapshots/00000001.json"] = b"rubbish"
    repository = Repository(store)
    assert repository.collect() > 16_000
    assert numbers(repository) == [0, 2]


def test_a_damaged_snapshot_can_be_given_up_so_that_collection_goes_on() -> None:
    store = MemoryStore()
    repository = saved(Repository(store), 4)
    store.files["snapshots/00000001.json"] = b"rubbish"
    del store.files["snapshots/00000002.json"]
    repository = Repository(store)
    with pytest.raises(CorruptionError, match="nothing was deleted"):
        repository.collect()
    with pytest.raises(NotFoundError, match="not damaged"):
        repository.abandon(0)
    repository.abandon(1)
    repository.abandon(2)
    assert repository.collect() > 16_000
    assert numbers(repository) == [0, 3]
    assert repository.verify().ok


def test_an_explicit_reference_never_falls_back_but_tags_and_ids_still_work() -> None:
    store = MemoryStore()
    saved(Repository(store), 3)
    Repository(store).tag("1", "good")
    store.files["snapshots/00000002.json"] = b"rubbish"
    repository = Repository(store)
    for reference in ("latest", "best", "1", 1, "id:2"):
        with pytest.raises(CorruptionError, match="snapshots/00000002"):
            repository.resolve(reference)
    assert repository.resolve("good").number == repository.resolve("id:1").number == 1
    with pytest.raises(CorruptionError):
        _ = repository.snapshots
    snapshots, damaged = repository.history()
    assert (list(snapshots), list(damaged)) == ([0, 1], [2])


# -- verification --------------------------------------------------------------------------------------------------


def test_verification_marks_what_is_whole(repository: Repository) -> None:
    saved(repository, 2)
    result = repository.verify()
    assert result.ok
    assert result.whole == (0, 1)
    assert result.num_bytes == 32_000
    assert all(snapshot.verified is not None for snapshot in repository.snapshots)


def test_verification_names_snapshots_file_tensor_and_bytes() -> None:
    store = MemoryStore()
    repository = saved(Repository(store), 3)
    stored = repository.manifest(repository.resolve("1")).stored["w"]
    file = f"packs/{stored.blocks[0].pack}.safetensors"
    data = bytearray(store.files[file])
    data[stored.blocks[0].offset + 5] ^= 1
    store.files[file] = bytes(data)
    result = Repository(store).verify()
    (damage,) = result.damage
    assert (damage.snapshots, damage.file, damage.name, damage.span) == ((1,), file, "w", (0, 16_000))
    assert result.whole == (0, 2)
    assert [snapshot.verified is not None for snapshot in Repository(store).snapshots] == [True, False, True]


def test_verification_finds_a_flipped_header_which_loads_do_not_need() -> None:
    store = MemoryStore()
    repository = saved(Repository(store), 1)
    file = f"packs/{store.list('packs')[0]}"
    data = bytearray(store.files[file])
    data[20] ^= 1
    store.files[file] = bytes(data)
    (damage,) = Repository(store).verify().damage
    assert (damage.file, damage.snapshots) == (file, (0,))
    assert load(repository)["step"] == 0


def test_verification_reports_lost_and_damaged_documents() -> None:
    store = MemoryStore()
    repository = saved(Repository(store), 4)
    manifest = f"manifests/{repository.resolve('0').manifest.id}.json"
    del store.files[manifest], store.files["snapshots/00000001.json"]
    store.files["snapshots/00000002.json"] = b"rubbish"
    result = Repository(store).verify()
    assert {damage.file for damage in result.damage} == {
        manifest, "snapshots/00000001.json", "snapshots/00000002.json",
    }  # fmt: skip
    assert result.whole == (3,)
    assert [d.snapshots for d in Repository(store).verify("id:2").damage] == [(2,)]


def test_a_place_that_cannot_be_written_can_be_verified(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(repository, 1)

    def refuse(*_arguments: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(repository.store, "create", refuse)
    assert repository.verify().ok
    assert repository.resolve().verified is None


# -- versions and features -----------------------------------------------------------------------------------------


def test_unknown_features_stop_writing_and_not_reading(repository: Repository) -> None:
    saved(repository, 2)
    repository.store.create("features/shards.json", b"{}")
    files = dict(repository.store.files)
    for write in (
        lambda: save(repository, 2), lambda: repository.tag("latest", "x"), lambda: repository.delete("0"),
        repository.collect, lambda: repository.add_metrics("latest", {"a": 1}),
        lambda: repository.prune([Keep()], dry_run=False), lambda: Repository(repository.store).commit(tree_of({})),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError, match="shards"):
            write()
    assert repository.store.files == files
    assert load(repository)["step"] == 1
    assert repository.verify().ok


def test_a_newer_format_is_refused() -> None:
    store = MemoryStore()
    store.create("safepoint.json", encode_sealed(FormatDocument("safepoint", FORMAT_VERSION + 1, "0" * 32)))
    for operation in (lambda: Repository(store).snapshots, lambda: save(Repository(store), 0)):
        with pytest.raises(UnsupportedError, match="newer format"):
            operation()
    assert list(store.files) == ["safepoint.json"]


# -- config --------------------------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Word(enum.Enum):
    A = "a"


@dataclasses.dataclass
class Options:
    lr: float
    names: tuple[str, ...]


@pytest.mark.parametrize(
    "config, expected",
    [
        (types.SimpleNamespace(a=1, b=[None]), {"a": 1, "b": [None]}),
        (Options(0.1, ("x",)), {"lr": 0.1, "names": ["x"]}),
        ({1: "one", "dict": {"list": []}}, {"1": "one", "dict": {"list": []}}),
        ({"list": 3}, {"list": 3}),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (Colour.RED, 1),
        (Word.A, "a"),
        (b"raw\0", b"raw\0"),
        (1 + 2j, 1 + 2j),
        ("\ud800", "\ud800"),
        (-(10**50), -(10**50)),
        (-0.0, -0.0),
    ],
)
def test_a_config_comes_back_plain(repository: Repository, config: Any, expected: Any) -> None:
    save(repository, 0, config=config)
    found = Repository(repository.store).resolve().config
    assert repr(found) == repr(expected)


def nested(depth: int) -> Any:
    config: Any = 1
    for _ in range(depth):
        config = [config]
    return config


@pytest.mark.parametrize(
    "config", [object(), {"f": len}, {"a": [1, {2}]}, nested(100), nested(5000), {1: 1, "1": 2}, Options, os]
)
def test_a_config_that_cannot_be_kept_is_refused_before_anything_is_written(
    repository: Repository, config: Any
) -> None:
    with pytest.raises(UnsupportedError, match="config"):
        save(repository, 0, config=config)
    assert not repository.exists


def test_a_config_that_contains_itself_is_refused(repository: Repository) -> None:
    config: dict[str, Any] = {}
    config["self"] = config
    with pytest.raises(UnsupportedError, match="nested too deep"):
        save(repository, 0, config=config)


def test_a_config_too_large_to_be_read_again_is_refused(repository: Repository) -> None:
    save(repository, 0)
    with pytest.raises(UnsupportedError, match="too large"):
        save(repository, 1, config={"text": "x" * (17 << 20)})
    assert numbers(repository) == [0]
    assert repository.collect() == 0  # and its pack was taken back


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "x" * 2000, "e\u0301"])
def test_a_name_that_cannot_be_read_again_is_not_written(repository: Repository, name: str) -> None:
    with pytest.raises(SafepointError):
        repository.commit(tree_of({name: np.ones(3)}))
    with pytest.raises(SafepointError):
        repository.commit(tree_of({name: 1}))
    assert repository.history() == ({}, {})
    assert repository.collect() == 0


# -- values --------------------------------------------------------------------------------------------------------


def test_every_value_comes_back_exactly(repository: Repository) -> None:
    values: dict[str, Any] = {
        "none": None, "true": True, "one": 1, "one.0": 1.0, "tiny": 5e-324, "huge": 1e308, "nan": float("nan"),
        "-inf": float("-inf"), "-0": -0.0, "int": -(2**63), "above": 2**63, "big": 3**400_000, "-big": -(3**400_000),
        "complex": complex(float("nan"), -0.0), "bytes": b"\0\xff", "text": 'é日\u2028"\\', "surrogate": "a\udc80",
        "long": "x" * 100_000, "long surrogate": "\ud800" * 70_000, "long bytes": bytes(range(256)) * 300,
        "edge": "x" * 65_536, "beyond": "x" * 65_537, "edge bytes": b"x" * 65_536,
    }  # fmt: skip
    snapshot = repository.commit(tree_of(values))
    assert_same(load(repository), values)
    assert snapshot.num_tensors == 0
    assert snapshot.num_bytes == 0
    large = {"big", "-big", "long", "long surrogate", "long bytes", "beyond"}
    assert set(repository.manifest(snapshot).values) == large


def test_a_tree_whose_large_values_were_not_read_is_not_saved(repository: Repository) -> None:
    """Rather than the text that stands for them."""
    snapshot = repository.commit(tree_of({"text": "x" * 100_000, "w": np.ones(3)}))
    tree = repository.manifest(snapshot).tree
    assert str(tree.leaves["text"]) == "<str of 100000 bytes>"
    with pytest.raises(UnsupportedError, match="text was not read"):
        repository.commit(tree)
    assert numbers(repository) == [0]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
@pytest.mark.parametrize(
    "file", ["safepoint.json", "snapshots/00000001.json", "manifest", "pack", "marks/00000001-0.json"]
)
def test_what_is_no_regular_file_is_damage(tmp_path: Path, kind: str, file: str) -> None:
    repository = saved(Repository(tmp_path), 2)
    repository.tag("1", "x")
    snapshot = repository.resolve("1")
    if file == "manifest":
        file = f"manifests/{snapshot.manifest.id}.json"
    elif file == "pack":
        file = f"packs/{next(iter(repository.manifest(snapshot).packs))}.safetensors"
    path = tmp_path / file
    elsewhere = path.rename(tmp_path / "elsewhere")
    if kind == "symlink":
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    fresh = Repository(LocalStore(tmp_path))
    with pytest.raises(CorruptionError):
        load(fresh, "latest")
    if file != "safepoint.json":
        assert load(fresh, "id:0")["step"] == 0
