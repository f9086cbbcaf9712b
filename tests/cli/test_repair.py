"""`safepoint repair`."""

from __future__ import annotations

from tests.cli.conftest import damage, tree

from safepoint.repository import Repository


def test_nothing_to_repair(run: Repository, safepoint) -> None:
    result = safepoint("repair", "runs/digits")
    assert result.code == 0
    assert result.out.startswith("✓ whole  ·  runs/digits  ·  nothing to repair  ·  ")
    assert safepoint("repair", "runs/digits", "-q").out == ""


def test_what_another_pack_holds_is_restored(run: Repository, safepoint) -> None:
    run.commit(tree(39), step=1, parent=None)  # the same again, in a pack of its own
    damage(run, 3)
    result = safepoint("repair", "runs/digits", "--json")
    assert result.code == 0
    assert list(result.json) == ["ok", "repository", "restored", "lost", "whole", "num_bytes"]
    (item,) = result.json["restored"]
    assert (item["tensor"], item["rows"], item["snapshots"]) == ("model/encoder.weight", [0, 100], [3])
    assert safepoint("verify", "runs/digits").code == 0
    assert "1 place restored" not in safepoint("repair", "runs/digits").out


def test_what_is_lost_is_told(run: Repository, safepoint) -> None:
    file = damage(run, 3)
    result = safepoint("repair", "runs/digits")
    assert result.code == 5
    assert result.out.startswith("✗ lost  ·  runs/digits  ·  1 place lost")
    for word in ("packs/", "model/encoder.weight", "0-100", "0-20,000", "whole: 0-2, 4", "runs/digits@id:4"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert safepoint("repair", "runs/digits", "-q").out != ""
    document = safepoint("repair", "runs/digits", "--json").json
    assert (document["ok"], document["lost"][0]["file"], document["whole"]) == (False, file, [0, 1, 2, 4])
