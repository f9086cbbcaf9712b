"""What a real terminal of 80 columns gets."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from safepoint.cli.output import headline
from safepoint.repository import Repository

COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])[0-9;]*m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(*arguments: str, **environment: str) -> str:
    """Both streams of a command whose terminal is a pseudo-terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "safepoint", *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(child)
    text = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not data:
            break
        text += data
    process.wait()
    os.close(parent)
    return text.decode()


@pytest.mark.parametrize("arguments", [["log", "runs/digits"], ["show", "runs/digits"], ["show", "nothing"]])
def test_there_are_colours_unless_nobody_wants_them(run: Repository, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert COLOUR.search(in_terminal(*arguments))
    assert not COLOUR.search(in_terminal(*arguments, NO_COLOR="1"))


def test_verify_draws_a_bar_and_takes_it_away(run: Repository) -> None:
    text = in_terminal("verify", "runs/digits")
    assert "━" in text
    assert ESCAPE.sub("", text).rstrip().splitlines()[-1].strip().startswith("✓ whole")


@pytest.mark.parametrize("arguments", [["show", "runs/digits", "--stats"], ["diff", "runs/digits@9", "runs/digits@49"]])
def test_what_reads_everything_shows_how_far_it_is(run: Repository, arguments: list[str]) -> None:
    assert "━" in in_terminal(*arguments)
    assert "━" not in in_terminal(*arguments, "--json")


@pytest.mark.parametrize("mode", ["--json", "-q"])
def test_there_is_no_bar_for_programs(run: Repository, mode: str) -> None:
    assert "\x1b" not in in_terminal("verify", "runs/digits", mode)


def test_only_the_dots_of_a_headline_are_dim() -> None:
    line = headline(("run", "bold"), ("", ""), ("5 snapshots", ""))
    assert line.plain == "run  ·  5 snapshots"
    assert [line.plain[span.start : span.end] for span in line.spans if span.style == "dim"] == ["  ·  "]
    assert line.style == ""
