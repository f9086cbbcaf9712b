"""`safepoint tag` and `safepoint untag`."""

from __future__ import annotations

from safepoint.repository import Repository


def test_a_tag_is_a_reference_from_then_on(run: Repository, safepoint) -> None:
    result = safepoint("tag", "runs/digits@best", "release-1")
    assert result.out == "runs/digits@release-1 is snapshot 2, step 29\n"
    assert safepoint("show", "runs/digits@release-1", "--json").json["tags"] == ["release-1"]


def test_json(run: Repository, safepoint) -> None:
    document = safepoint("tag", "runs/digits", "x", "--json").json
    assert (document["reference"], document["tag"]) == ("runs/digits@id:4", "x")
    assert document["snapshot"]["tags"] == ["x"]


def test_a_taken_tag_is_refused(run: Repository, safepoint) -> None:
    assert safepoint("tag", "runs/digits@id:1", "x", "-q").out == ""
    assert safepoint("tag", "runs/digits@id:2", "x").code == 6


def test_digits_are_no_tag(run: Repository, safepoint) -> None:
    assert safepoint("tag", "runs/digits", "100").code == 7


def test_untag(run: Repository, safepoint) -> None:
    safepoint("tag", "runs/digits@id:1", "x")
    assert "no longer called x" in safepoint("untag", "runs/digits", "x").out
    assert safepoint("untag", "runs/digits", "x").code == 10
    safepoint("tag", "runs/digits@id:1", "x")
    assert safepoint("untag", "runs/digits", "x", "--json").json["snapshot"]["tags"] == []
