"""What a person or a program reads when a command fails: one message on stderr, plain or as JSON."""

from __future__ import annotations

import os
import sys

import click

from safepoint.cli.text import plain
from safepoint.errors import CorruptionError, SafepointError


def report(error: Exception | None, *, code: str, exit_code: int, as_json: bool) -> int:
    """Write one error to stderr; returns its exit code."""
    fields = _fields(error)
    if as_json:
        import json

        sys.stderr.write(json.dumps({"code": code, "exit_code": exit_code, **fields}, indent=2) + "\n")
        return exit_code
    if error is None:
        click.echo(_coloured("interrupted", "yellow"), err=True)
        return exit_code
    labels = {"expected": "expected: ", "found": "found:    ", "hint": "next:     "}
    lines = [plain(fields["message"] or "", lines=True)]
    lines += [f"  {label}{plain(fields[key] or '', lines=True)}" for key, label in labels.items() if fields[key]]
    click.echo(_coloured("error: ", "red") + "\n".join(lines), err=True)
    return exit_code


def _fields(error: Exception | None) -> dict[str, str | None]:
    message, expected, found, hint = "interrupted", None, None, None
    if isinstance(error, CorruptionError):
        error.advise("`safepoint verify` lists all that is damaged, `safepoint log` what else there is")
    if isinstance(error, SafepointError):
        message, expected, found, hint = error.message, error.expected, error.found, error.hint
    elif isinstance(error, click.UsageError):
        message = error.format_message()
        hint = f"{error.ctx.command_path} --help" if error.ctx else "safepoint --help"
    elif isinstance(error, click.ClickException):
        message = error.format_message()
    elif isinstance(error, OSError):
        message, found = "the system refused", str(error)
    elif error is not None:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "this is a bug in safepoint; SAFEPOINT_TRACEBACK=1 shows where"
    return {"message": message, "expected": expected, "found": found, "hint": hint}


def _coloured(text: str, colour: str) -> str:
    """Click takes colours away outside a terminal, but does not know NO_COLOR."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True)
