"""Writes docs/cli.md from the commands themselves: `make docs`. A test fails when the page is out of date."""
# ruff: noqa: INP001

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from safepoint import errors
from safepoint.cli.program import SECTIONS, program
from safepoint.errors import SafepointError

PAGE = Path(__file__).with_name("cli.md")

HEAD = """# The command line

Written by `make docs` from the commands' own help; `safepoint COMMAND --help` prints the same.

What holds for every command:

- What was asked for goes to stdout; errors, warnings and progress go to stderr. Progress is drawn in a terminal only.
- `--json` prints one JSON document on stdout and nothing else there; an error is one JSON document on stderr.
  Fields are added from version to version, never changed.
- `--quiet` leaves names or nothing, one a line, for `xargs`.
- Colours are for terminals, and not under `NO_COLOR`. Elsewhere lines are 80 columns wide, or `COLUMNS`.
- Nothing is ever asked: what deletes without a way back says what it would do, and does it with `--yes`.
- No framework is imported, and nothing in a file is run. `demo` and `verify-resume` run scripts: safepoint's and yours.
- `safepoint completion bash|zsh|fish` prints what makes a shell complete commands and options.
- `SAFEPOINT_TRACEBACK=1` shows where an unexpected error came from.

## Exit codes

| Code | `code` in JSON | Means |
|---:|---|---|
"""


def exit_codes() -> Iterator[tuple[int, str, str]]:
    """Code, its word, and what it means; errors say it themselves."""
    yield 0, "", "Done; and with `diff --exit-code`: nothing differs."
    yield 1, "unexpected", "A bug in safepoint, or a reader of its output that went away."
    yield 2, "usage", "The command line is not one that the command takes."
    yield 3, "", "`health` found that something went wrong in the run; no other command exits with it."
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SafepointError)]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        if kind is not SafepointError:
            yield kind.exit_code, kind.code, (kind.__doc__ or "").splitlines()[0]
    yield 130, "interrupted", "Ctrl-C."


def help_of(name: str) -> str:
    """What `safepoint NAME --help` prints in 80 columns."""
    parent = click.Context(program, info_name="safepoint", terminal_width=80)
    found = program.get_command(parent, name)
    assert found is not None
    return found.get_help(
        click.Context(found, parent=parent, info_name=name, terminal_width=80, **found.context_settings)
    )


def page() -> str:
    """The whole page."""
    parts = [
        HEAD + "\n".join(f"| {code} | {f'`{word}`' if word else ''} | {text} |" for code, word, text in exit_codes())
    ]
    parts.append(
        "`verify-resume` and `diff --exit-code` exit with 4 where something differs, "
        "`health` with 3 where it finds something."
    )
    for section, names in SECTIONS.items():
        parts.append(f"## {section}")
        parts += [f"### safepoint {name}\n\n```text\n{help_of(name).rstrip()}\n```" for name in names]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
