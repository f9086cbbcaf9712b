"""docs/cli.md is what the commands say of themselves; what all commands promise, on each of them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safepoint.cli.program import SECTIONS
from safepoint.repository import Repository

ROOT = Path(__file__).parents[2]


def test_the_reference_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "cli_reference.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text() == page, "write it again: make docs"


def test_the_reference_has_every_command_and_exit_code() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for names in SECTIONS.values():
        for name in names:
            assert f"\n### safepoint {name}\n" in page
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 130):
        assert f"\n| {code} | " in page


CALLS = {
    "log": ["runs/digits"],
    "show": ["runs/digits@best"],
    "diff": ["runs/digits@9", "runs/digits@49"],
    "verify": ["runs/digits"],
    "convert": ["runs/digits", "out.npz"],
    "import": ["old", "--into", "runs/imported", "--dry-run"],
    "tag": ["runs/digits@19", "good"],
    "untag": ["runs/digits", "start"],
    "delete": ["runs/digits@9"],
    "prune": ["runs/digits", "--keep-latest", "1"],
    "collect": ["runs/digits"],
    "compact": ["runs/digits"],
    "repair": ["runs/digits"],
    "completion": ["bash"],
}
ELSEWHERE = {"plot", "sign", "demo", "verify-resume", "bench"}  # need an extra, a key or minutes: see their own tests


@pytest.mark.parametrize("name", [name for names in SECTIONS.values() for name in names if name not in ELSEWHERE])
def test_json_is_alone_on_stdout(run: Repository, safepoint: Callable, name: str) -> None:
    run.tag("id:3", "start")
    assert safepoint("convert", "runs/digits", "old/model_10.npz").code == 0
    call = CALLS.get(name, ["runs/digits"])
    result = safepoint(name, *call, "--json")
    assert result.code == 0, result.err
    assert isinstance(json.loads(result.out), dict)
    assert result.out.isascii()
    plain = safepoint(name, *call)
    assert "\x1b" not in plain.out + plain.err
    assert max(map(len, plain.out.splitlines()), default=0) <= 80 or name == "completion"


def test_nobody_is_asked_anything() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src" / "safepoint" / "cli").rglob("*.py"))
    for word in ("click.confirm(", "click.prompt(", "input(", "getpass(", ".pause("):
        assert word not in source


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_learns_to_complete(safepoint: Callable, shell: str) -> None:
    script = safepoint("completion", shell).out
    assert "_SAFEPOINT_COMPLETE" in script
    assert safepoint("completion", shell, "--json").json == {"shell": shell, "script": script[:-1]}


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "safepoint"
    program.write_text(f"#!{sys.executable}\nfrom safepoint.cli import main\nmain()\n")
    program.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH; eval "$(safepoint completion bash)"; COMP_WORDS=(safepoint {{}}); COMP_CWORD={{}}; '
        '_safepoint_completion safepoint; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script.format("verify", 1)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["verify", "verify-resume"]
    done = subprocess.run(["bash", "-c", script.format("diff --ex", 2)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--exit-code"]
