"""The program as a whole: help, version, errors, what it imports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from safepoint.cli import program as program_module
from safepoint.cli.program import SECTIONS, module_of, program
from safepoint.errors import SafepointError
from safepoint.repository import Repository

COMMANDS = [name for names in SECTIONS.values() for name in names]
SOURCE = Path(program_module.__file__).parent

# Notes what is asked for, so that the test means the same where the frameworks are not installed.
PROBE = """
import importlib.abc, json, sys
class Recorder(importlib.abc.MetaPathFinder):
    asked = set()
    def find_spec(self, name, path=None, target=None):
        self.asked.add(name.partition(".")[0])
sys.meta_path.insert(0, Recorder())
from safepoint.cli.program import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted(Recorder.asked)]), file=sys.stderr)
"""
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "jaxlib", "h5py", "matplotlib", "sklearn", "safetensors"}


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safepoint", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def asked_for(*arguments: str) -> tuple[int, set[str]]:
    command = [sys.executable, "-c", PROBE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    code, asked = json.loads(result.stderr.splitlines()[-1])
    return code, set(asked)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_ends_with_examples(safepoint, name) -> None:
    result = safepoint(name, "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    command = program.get_command(click.Context(program), name)
    assert command is not None
    assert command.help
    assert command.short_help
    examples = result.out.partition("Examples:")[2].split()
    assert examples[:2] == ["safepoint", name]
    assert "--json" in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_and_says_how_to_be_called(safepoint, name) -> None:
    module = importlib.import_module(f"safepoint.cli.{module_of(name)}")
    assert module.__doc__.startswith(f"`safepoint {name}`: ")


def test_help_lists_every_command_on_one_line_and_fits_80_columns(safepoint) -> None:
    lines = safepoint("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] and line.endswith(".") for line in lines), name


def test_no_arguments_show_the_help(safepoint) -> None:
    result = safepoint()
    assert result.code == 0
    assert "Usage:" in result.out


def test_version(safepoint) -> None:
    assert safepoint("--version").out.startswith("safepoint ")


def test_help_imports_neither_rich_nor_numpy_nor_a_framework() -> None:
    code, asked = asked_for("--help")
    assert code == 0
    assert not asked & (FRAMEWORKS | {"rich", "numpy", "msgspec"})


@pytest.mark.parametrize("arguments", [["log", "runs/digits"], ["show", "runs/digits"], ["verify", "runs/digits"]])
def test_looking_imports_no_framework(run: Repository, arguments: list[str]) -> None:
    code, asked = asked_for(*arguments)
    assert code == 0
    assert not asked & FRAMEWORKS


def test_json_does_not_import_rich(run: Repository) -> None:
    assert "rich" not in asked_for("show", "runs/digits", "--json")[1]


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(safepoint) -> None:
    result = safepoint("logs")
    assert result.code == 2
    assert "did you mean 'log'?" in result.err
    assert result.out == ""


def test_errors_are_json_where_json_was_asked_for(safepoint, tmp_path) -> None:
    result = safepoint("log", tmp_path / "nothing", "--json")
    assert result.code == 10
    assert result.out == ""
    assert result.error == {
        "code": "not_found",
        "exit_code": 10,
        "message": f"there is nothing at {tmp_path / 'nothing'}",
        "expected": "a repository or a file",
        "found": None,
        "hint": "check the path",
    }


def test_usage_errors_are_json_too(safepoint) -> None:
    result = safepoint("log", "--json", "--no-such-option")
    assert result.code == 2
    assert result.error["code"] == "usage"
    assert result.error["exit_code"] == 2


@pytest.mark.parametrize("kind", SafepointError.__subclasses__())
def test_every_error_has_its_own_exit_code(safepoint, monkeypatch, kind) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise kind("it broke", expected="this", found="that", hint="do something")

    monkeypatch.setattr(program, "main", fail)
    result = safepoint("log", "run")
    assert result.code == kind.exit_code
    assert result.err == "error: it broke\n  expected: this\n  found:    that\n  next:     do something\n"


@pytest.mark.parametrize(
    "error, code, word",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (ValueError("odd"), 1, "unexpected ValueError: odd"),
        (PermissionError(13, "Permission denied", "x"), 1, "Permission denied"),
    ],
)
def test_no_error_shows_a_traceback(safepoint, monkeypatch, error, code, word) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise error

    monkeypatch.setattr(program, "main", fail)
    result = safepoint("log", "run")
    assert result.code == code
    assert word in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert safepoint("log", "run", "--json").error["exit_code"] == code


def test_it_runs_as_a_module() -> None:
    assert "Usage: python -m safepoint" in start("--help").stdout


def test_a_reader_that_goes_away_is_no_error(run: Repository) -> None:
    command = f"{sys.executable} -m safepoint show runs/digits -q | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "model/encoder.weight\n"
    assert result.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_complete(shell: str) -> None:
    code = "import sys; sys.argv[0] = 'safepoint'; from safepoint.cli import main; main()"
    environment = {**os.environ, "_SAFEPOINT_COMPLETE": f"{shell}_source"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "_SAFEPOINT_COMPLETE" in result.stdout


def test_output_has_no_colours_outside_a_terminal(run: Repository, safepoint: Callable) -> None:
    for arguments in (["log", "runs/digits"], ["show", "runs/digits"], ["verify", "runs/digits"]):
        result = safepoint(*arguments)
        assert "\x1b" not in result.out + result.err


def test_it_speaks_ascii_where_the_terminal_knows_nothing_else(run: Repository) -> None:
    result = start("show", "runs/digits", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "|- encoder" in result.stdout or "|" in result.stdout


def test_modules_stay_small() -> None:
    assert {path.name for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 300} == set()
