"""`safepoint delete`."""

from __future__ import annotations

from pathlib import Path

import pytest

from safepoint.repository import Repository


def test_without_yes_it_only_tells(run: Repository, safepoint) -> None:
    assert "would be deleted; add --yes" in safepoint("delete", "runs/digits@9").out
    assert len(Repository("runs/digits").snapshots) == 5


def test_with_yes_it_is_given_up(run: Repository, safepoint) -> None:
    assert "safepoint collect runs/digits" in safepoint("delete", "runs/digits@9", "--yes").out
    assert [s.number for s in Repository("runs/digits").snapshots] == [1, 2, 3, 4]


def test_json(run: Repository, safepoint) -> None:
    document = safepoint("delete", "runs/digits@9", "--json").json
    assert (document["reference"], document["dry_run"]) == ("runs/digits@id:0", True)
    document = safepoint("delete", "runs/digits@9", "--yes", "--json").json
    assert (document["dry_run"], document["snapshot"]["pruned"]) == (False, True)


def test_the_newest_and_tagged_ones_are_refused_even_without_yes(run: Repository, safepoint) -> None:
    run.tag("id:1", "x")
    assert safepoint("delete", "runs/digits").code == 7
    result = safepoint("delete", "runs/digits@x")
    assert result.code == 7
    assert "safepoint untag runs/digits x" in result.err


def test_the_newest_is_not_deleted_by_untagging_it(run: Repository, safepoint) -> None:
    run.tag("latest", "x")
    result = safepoint("delete", "runs/digits")
    assert "the newest and tagged x" in result.err
    assert "save another first" in result.err


@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_or_lost_one_is_given_up_by_its_number(run: Repository, safepoint, *, lost: bool) -> None:
    file = next(Path("runs/digits/snapshots").glob("*2.json"))
    file.chmod(0o644)
    if lost:
        file.unlink()
    else:
        file.write_bytes(b"{}")
    refused = safepoint("collect", "runs/digits")
    assert "safepoint delete runs/digits@id:2" in refused.err
    result = safepoint("delete", "runs/digits@id:2")
    assert result.out == "snapshot 2, which is damaged or lost, would be deleted; add --yes to do it\n"
    assert safepoint("delete", "runs/digits@id:2", "--yes").code == 0
    assert safepoint("collect", "runs/digits").code == 0
