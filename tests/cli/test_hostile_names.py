"""Names, tags and texts come from files that strangers wrote; none of them may steer a terminal."""

from __future__ import annotations

import numpy as np
import pytest

from safepoint.cli.text import plain
from safepoint.repository import Repository, write_model_file
from safepoint.tree import Branch, StateTree, Tensor

EVIL = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202egnp\u200b\x9b31m\r\n[link=http://x]"


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    repository = Repository("run")
    leaves = {
        "model/[bold]w[/bold]": Tensor.of(np.zeros(3, np.float32)),
        "model/[/]": Tensor.of(np.zeros(3, np.float32)),
        "state/text": EVIL,
    }
    repository.commit(
        StateTree(leaves, Branch("dict")),
        metrics={EVIL: 1.0, "[red]loss": 2.0},
        config={EVIL: EVIL},
        environment={"python": EVIL},
    )
    structure = {"config": {"class_name": EVIL, "config": {"layers": [{"class_name": EVIL, "config": {"name": EVIL}}]}}}
    write_model_file("model", StateTree(leaves, Branch("dict")), structure=structure, format=EVIL)
    return repository


@pytest.mark.parametrize(
    "arguments",
    [
        ["log", "run"], ["show", "run"], ["show", "model"], ["verify", "run"], ["prune", "run", "--keep-latest", "1"],
        ["health", "run"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [[], ["--json"], ["-q"]])
def test_nothing_from_a_file_reaches_the_terminal_raw(evil, safepoint, arguments, mode) -> None:
    result = safepoint(*arguments, *mode)
    assert result.code == 0, result.err
    for character in result.out + result.err:
        assert character == "\n" or character.isprintable(), repr(character)


def test_markup_is_text(evil, safepoint) -> None:
    assert "[bold]w[/bold]" in safepoint("show", "run").out
    assert "[red]loss" in safepoint("log", "run").out


def test_errors_are_harmless_too(evil, safepoint) -> None:
    result = safepoint("show", f"run@{EVIL}")
    assert result.code == 10
    assert "\x1b" not in result.err
    assert "\x1b" not in safepoint("show", f"run@{EVIL}", "--json").err


def test_plain_keeps_letters_of_every_language() -> None:
    assert plain("größe 層 наименование") == "größe 層 наименование"
    assert plain("a\x1bb\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
