"""`safepoint collect`."""

from __future__ import annotations

from safepoint.repository import Repository


def test_what_was_given_up_is_freed(run: Repository, safepoint) -> None:
    assert safepoint("collect", "runs/digits").out == "nothing to free\n"
    run.delete("id:1")
    assert safepoint("collect", "runs/digits").out.endswith("kB freed\n")
    run.delete("id:2")
    assert safepoint("collect", "runs/digits", "--json").json["freed_bytes"] > 20_000
    assert safepoint("verify", "runs/digits").code == 0


def test_a_run_in_use_is_left_alone(run: Repository, safepoint) -> None:
    with run.reading():
        result = safepoint("collect", "runs/digits", "--json")
    assert result.code == 11
    assert result.error["code"] == "conflict"
