"""`safepoint diff`: structure, numbers as NumPy has them, and no reading of what is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.open.conftest import bytes_read, safetensors_bytes

from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Repository
from safepoint.tree import StateTree, Tensor

__all__ = ["bytes_read"]

RNG = np.random.default_rng(0)
BEFORE = {
    "encoder.weight": RNG.random((30, 40)).astype(np.float32),
    "encoder.bias": RNG.random(30).astype(np.float32),
    "head": RNG.random((3, 4)),
    "gone": np.zeros(2),
    "count": np.array([1, 2, 3]),
    "kind": np.ones(4, np.float32),
}
AFTER = {
    **{name: array for name, array in BEFORE.items() if name != "gone"},
    "encoder.weight": BEFORE["encoder.weight"] * np.float32(1.5),
    "count": np.array([1, 2, 7]),
    "head": np.zeros((5, 4)),
    "kind": np.ones(4, np.float64),
    "new": np.zeros(1),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(safetensors_bytes(BEFORE))
    Path("b").write_bytes(safetensors_bytes(AFTER))


def test_structure_then_numbers(files: None, safepoint: Any) -> None:
    document = safepoint("diff", "a", "b", "--json").json
    assert (document["added"], document["removed"], document["equal"]) == (["new"], ["gone"], 2)
    assert document["reshaped"] == {"head": ["float64[3, 4]", "float64[5, 4]"]}
    assert document["retyped"] == {"kind": ["float32[4]", "float64[4]"]}
    count, weight = document["moved"]
    assert (count["name"], count["largest"], count["share"]) == ("count", 4, 1 / 3)
    assert count["relative"] == pytest.approx(4 / np.sqrt(14))
    assert count["cosine"] == pytest.approx((1 + 4 + 21) / np.sqrt(14 * 54))
    assert (weight["name"], weight["share"]) == ("encoder.weight", 1)
    assert weight["relative"] == pytest.approx(0.5)
    assert weight["cosine"] == pytest.approx(1)


def test_for_people_and_for_a_pull_request(files: None, safepoint: Any) -> None:
    out = safepoint("diff", "a", "b", "--top", 1).out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "2 tensors moved (1 not shown), 2 equal" in rows[0]
    assert "added new" in rows
    assert any(row.startswith("count 1.07 4 ") for row in rows)
    assert not any(row.startswith("encoder.weight") for row in rows)
    out = safepoint("diff", "a", "b", "--md").out
    assert "| `count` | 1.07 | 4 |" in out
    assert "- removed `gone`" in out
    assert safepoint("diff", "a", "b", "-q").out.split() == ["new", "gone", "head", "kind", "count", "encoder.weight"]


def test_merged_adapters_are_told_from_training(files: None, safepoint: Any) -> None:
    base = {f"layer{i}": RNG.standard_normal((150, 140)).astype(np.float32) for i in range(2)}
    low = RNG.standard_normal((150, 4)) @ RNG.standard_normal((4, 140)) / 100
    Path("base").write_bytes(safetensors_bytes(base))
    Path("tuned").write_bytes(safetensors_bytes({n: (a + low).astype(np.float32) for n, a in base.items()}))
    Path("trained").write_bytes(safetensors_bytes({n: (a * a).astype(np.float32) for n, a in base.items()}))
    document = safepoint("diff", "base", "tuned", "--json").json
    assert [(item["rank"], item["full_rank"]) for item in document["moved"]] == [(4, 140)] * 2
    assert document["low_rank"] == 4
    out = safepoint("diff", "base", "tuned", "--md").out
    assert "matrices by rank 4 at most, as adapters (LoRA) do" in out
    out = safepoint("diff", "base", "trained").out
    assert out.splitlines()[-1].split()[-1] == "128+"
    assert "LoRA" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_twentieth_that_changed_is_read_twice_and_nothing_else(files: None, safepoint: Any, bytes_read: Any) -> None:
    arrays = {f"m/{index}": np.full(100_000, index, np.float32) for index in range(20)}
    repository = Repository("run")
    repository.commit(StateTree({n: Tensor.of(a) for n, a in arrays.items()}))
    arrays["m/7"][5] = 1
    repository.commit(StateTree({n: Tensor.of(a) for n, a in arrays.items()}))
    bytes_read()
    document = safepoint("diff", "run@id:0", "run@id:1", "--json").json
    assert bytes_read() < 0.12 * sum(array.nbytes for array in arrays.values())
    assert ([item["name"] for item in document["moved"]], document["equal"]) == (["m/7"], 19)


def test_exit_codes_and_renaming(files: None, safepoint: Any) -> None:
    assert safepoint("diff", "a", "b").code == 0
    assert safepoint("diff", "a", "b", "--exit-code").code == 4
    assert safepoint("diff", "a", "a", "--exit-code").code == 0
    Path("c").write_bytes(safetensors_bytes({name.replace("encoder.", "bert/"): a for name, a in BEFORE.items()}))
    assert safepoint("diff", "a", "c", "--exit-code", "--rename", "^encoder[.]=bert/").code == 0
    assert safepoint("diff", "a", "c", "--rename", "encoder").code == 7
    assert safepoint("diff", "a", "nowhere").code == 10


@pytest.mark.parametrize("prefix", ["model/", "module."])
def test_a_prefix_that_one_of_them_lacks_is_left_out(prefix: str, files: None, safepoint: Any) -> None:
    Path("c").write_bytes(safetensors_bytes({**{prefix + n: a for n, a in BEFORE.items()}, "other/x": np.ones(2)}))
    there, back = safepoint("diff", "c", "a", "--json").json, safepoint("diff", "a", "c", "--json").json
    assert (there["equal"], there["added"], there["removed"]) == (len(BEFORE), [], ["other/x"])
    assert (back["equal"], back["added"], back["removed"]) == (len(BEFORE), ["other/x"], [])
    assert back["rename"] == {"^": prefix}
    assert f"compared as by --rename '^={prefix}'" in safepoint("diff", "a", "c").out
    assert safepoint("diff", "a", "c", "--rename", "nothing=").code == 4
    Path("d").write_bytes(safetensors_bytes({"gone": np.ones(2), prefix + "head": np.ones(3)}))
    assert safepoint("diff", "d", "a", "--json").json["rename"] == {}


def test_no_prefix_is_guessed_that_would_join_two_names(files: None, safepoint: Any) -> None:
    Path("e").write_bytes(safetensors_bytes({"m/w": np.ones(2), "w": np.zeros(2), "m/b": np.ones(3)}))
    Path("f").write_bytes(safetensors_bytes({"b": np.ones(3)}))
    found = safepoint("diff", "e", "f", "--json").json
    assert (found["rename"], found["added"], found["removed"]) == ({}, ["b"], ["m/w", "w", "m/b"])


def test_a_prefix_with_a_backslash_is_taken_as_it_is(files: None, safepoint: Any) -> None:
    Path("g").write_bytes(safetensors_bytes({"a\\1b/" + name: array for name, array in BEFORE.items()}))
    assert safepoint("diff", "a", "g", "--json").json["equal"] == len(BEFORE)


def test_nan_and_infinity(files: None, safepoint: Any) -> None:
    Path("x").write_bytes(safetensors_bytes({"w": np.array([1.0, np.nan, 3.0]), "z": np.zeros(2)}))
    Path("y").write_bytes(safetensors_bytes({"w": np.array([1.0, np.nan, np.inf]), "z": np.ones(2)}))
    moved = {item["name"]: item for item in safepoint("diff", "x", "y", "--json").json["moved"]}
    assert moved["w"]["largest"] == {"float": "inf"}
    assert moved["w"]["share"] == 1 / 3
    assert moved["z"]["relative"] == {"float": "inf"}
    assert safepoint("diff", "x", "x", "--exit-code").code == 0


def test_equal_blocks_of_a_run_are_not_read(files: None, safepoint: Any, bytes_read: Any) -> None:
    large = np.zeros(3 * BLOCK_BYTES // 4, np.float32)
    large[0] = 2
    frozen = np.arange(1000.0)
    repository = Repository("run")
    for step in range(2):
        large[1] = step
        tree = StateTree({"m/large": Tensor.of(large), "m/frozen": Tensor.of(frozen), "m/epoch": step})
        repository.commit(tree, step=step)
    bytes_read()
    document = safepoint("diff", "run@0", "run@1", "--json").json
    assert bytes_read() < 2 * BLOCK_BYTES + 100_000
    assert [item["name"] for item in document["moved"]] == ["m/large"]
    assert document["moved"][0]["relative"] == 0.5
    assert document["values"] == {"m/epoch": [0, 1]}
    assert document["equal"] == 1


def test_random_state_has_no_distance(safepoint: Any, tmp_path: Path) -> None:
    import safepoint as library

    state = {"w": np.zeros(3)}
    with library.CheckpointManager(library.Checkpoint(state=state), tmp_path / "run") as manager:
        for _ in manager.steps(2):
            np.random.random()
            state["w"] += 1
            manager.save()
    found = safepoint("diff", str(tmp_path / "run@0"), str(tmp_path / "run@1"), "--json").json
    assert [item["name"] for item in found["moved"]] == ["state/w"]
    assert all(name.startswith("random/") for name in found["bytes"])
    assert found["bytes"] or found["values"]
