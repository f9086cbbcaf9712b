"""What format version 1 wrote is read exactly, for ever; each damaged copy gives its named error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.golden.make import HERE, PUBLIC, contents, make, moved_contents
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import CorruptionError, NotFoundError, SafepointError, UnsupportedError
from safepoint.repository import Repository, read_model_file
from safepoint.tree import Branch, LeafRef, Tensor


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy: even looking makes a lock file."""
    return Path(shutil.copytree(HERE / "v1", tmp_path / "v1"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_snapshot_comes_back_exactly(golden: Path, number: int) -> None:
    found = load(Repository(golden), f"id:{number}")
    complex32 = found.pop("model/complex32")
    assert complex32.tobytes() == bytes(range(8))
    assert_same(found, contents()[number])


def test_history_comes_back(golden: Path) -> None:
    snapshots, damaged = Repository(golden).history()
    assert damaged == {}
    assert [s.step for s in snapshots.values()] == [10, 20, 30, 0, 31]
    assert [s.parent for s in snapshots.values()] == [None, 0, 1, None, 2]
    assert [s.pruned for s in snapshots.values()] == [False, False, False, True, False]
    assert [s.tags for s in snapshots.values()] == [("start",), ("good",), (), (), ()]
    assert [s.verified is not None for s in snapshots.values()] == [True, False, False, False, False]
    assert dict(snapshots[1].metrics) == pytest.approx({"loss": 0.25, "nan": np.nan, "accuracy": 0.875}, nan_ok=True)
    assert snapshots[0].config == {"lr": 1e-3, "layers": [64, 10], "name": "golden"}
    assert snapshots[0].environment == {"python": "3.11.0"}
    assert snapshots[0].time.isoformat() == "2030-01-02T03:05:05.000006+00:00"
    assert snapshots[1].written_bytes < snapshots[0].written_bytes


def test_the_skeleton_comes_back(golden: Path) -> None:
    repository = Repository(golden)
    skeleton = repository.manifest(repository.resolve("10")).tree.skeleton
    state = Branch(
        "dict", ("step", 1, None), (LeafRef("step"), LeafRef("none"), Branch("list", (), (LeafRef("flag"),)))
    )
    assert skeleton == Branch("dict", ("model", "state"), (Branch("torch.module"), state))


def test_it_is_whole_and_life_goes_on(golden: Path) -> None:
    repository = Repository(golden)
    assert repository.verify().ok
    assert repository.collect() == 0
    manifest = repository.manifest(repository.resolve("start"))
    assert repository.commit(manifest.load(manifest.tree.leaves)).number == 5
    assert_same({**load(repository), "model/complex32": 0}, {**contents()[0], "model/complex32": 0})


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "v1-moved", tmp_path / "v1-moved"))


def test_what_was_healed_compacted_and_signed_comes_back_and_what_was_not_is_told(moved: Path) -> None:
    repository = Repository(moved)
    for number, expected in moved_contents().items():
        assert_same(load(repository, f"id:{number}"), expected)
    with pytest.raises(CorruptionError) as caught:
        load(repository, "id:2")
    assert (caught.value.name, caught.value.rows) == ("w", (0, 500))
    assert repository.check_signature("id:1", PUBLIC)
    assert [damage.name for damage in repository.verify().damage] == ["w"]
    assert [damage.snapshots for damage in repository.repair().lost] == [(2,)]
    lost = {**moved_contents()[1], "w": moved_contents()[1]["w"] * 2, "step": 2}
    repository.commit(tree_of(lost), parent=3)
    repository.collect()
    assert_same(load(repository, "id:2"), lost)
    assert repository.verify().ok


def test_the_model_file_comes_back() -> None:
    model = read_model_file(HERE / "v1.model")
    assert (model.format, model.structure) == ("golden", {"class": "golden.Model", "layers": [64, 10]})
    leaves = model.load().leaves
    for name, leaf in leaves.items():
        expected = {**contents()[0], "optimizer/m": np.arange(3, dtype=np.float32)}.get(name)
        if name != "model/complex32":
            assert_same({name: leaf.numpy() if isinstance(leaf, Tensor) else leaf}, {name: expected})


def test_what_is_written_today_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """A change of the format that nobody meant shows here."""
    make(tmp_path)
    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = [*(HERE / "v1").rglob("*"), *(HERE / "v1-moved").rglob("*"), HERE / "v1.model"]
    assert made == {str(path.relative_to(HERE)): path.read_bytes() for path in committed if path.is_file()}


def snapshot(number: int) -> Callable[[Path], Path]:
    return lambda root: root / "snapshots" / f"{number:08d}.json"


def manifest_of_start(root: Path) -> Path:
    return root / "manifests" / f"{Repository(root).resolve('id:0').manifest.id}.json"


def pack_of_start(root: Path) -> Path:
    repository = Repository(root)
    return root / "packs" / f"{next(iter(repository.manifest(repository.resolve('id:0')).packs))}.safetensors"


def identity(root: Path) -> Path:
    return root / "safepoint.json"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


VICTIMS = {
    "identity": identity, "snapshot": snapshot(0), "mark": lambda root: root / "marks" / "00000000-0.json",
    "manifest": manifest_of_start, "pack": pack_of_start,
}  # fmt: skip


@pytest.mark.parametrize("damage", [flip, cut, empty, remove])
@pytest.mark.parametrize("victim", VICTIMS.values(), ids=VICTIMS)
def test_each_damage_has_its_error(
    golden: Path, victim: Callable[[Path], Path], damage: Callable[[Path], None]
) -> None:
    path = victim(golden)
    damage(path)
    repository = Repository(golden)
    if damage is remove and victim is VICTIMS["mark"]:
        assert load(repository, "id:0")["state/step"] == 1  # what it said is forgotten; nothing tells
        return
    with pytest.raises(SafepointError) as caught:
        load(repository, "id:0")
    if damage is remove and victim is identity:
        assert isinstance(caught.value, NotFoundError)
        return
    if damage is remove and victim is VICTIMS["snapshot"]:
        assert isinstance(caught.value, NotFoundError)
        assert [d.file for d in repository.verify().damage] == ["snapshots/00000000.json"]
        return
    assert isinstance(caught.value, CorruptionError)
    assert caught.value.file == str(path.relative_to(golden))
    if victim is not identity:
        assert load(repository, "latest")["lost/w"].tolist() == [1.0, 1.0]


def test_a_newer_feature_stops_writers_only(golden: Path) -> None:
    (golden / "features").mkdir()
    (golden / "features" / "codecs.json").write_text("{}")
    repository = Repository(golden)
    assert load(repository, "start")["state/step"] == 1
    with pytest.raises(UnsupportedError, match="codecs"):
        repository.tag("start", "again")


@pytest.mark.parametrize("position", range(0, 12_493, 61))
def test_a_flipped_bit_anywhere_in_the_model_file_is_found(tmp_path: Path, position: int) -> None:
    data = bytearray((HERE / "v1.model").read_bytes())
    data[position] ^= 1
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(SafepointError) as caught:
        read_model_file(path).load()
    assert isinstance(caught.value, CorruptionError | UnsupportedError)
