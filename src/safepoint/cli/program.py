"""The program `safepoint`: its commands, and what becomes of an error.

Invariant: a command's data goes to stdout, every other word to stderr; an error never shows a traceback.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from safepoint.cli.failure import report
from safepoint.errors import SafepointError

SECTIONS = {
    "Look": ("log", "show", "diff", "plot", "health", "verify"),
    "Carry": ("convert", "import"),
    "Keep": ("tag", "untag", "delete", "prune", "collect", "compact", "repair", "sign"),
    "Try": ("demo", "verify-resume", "bench"),
    "Set up": ("completion",),
}
"""Every command, one module of this package each, in the order of `safepoint --help`."""

_EPILOG = """\b
Examples:
  safepoint demo                       train, kill, resume and load a network
  safepoint log runs/digits            what was saved
  safepoint show runs/digits@best      what is in the best snapshot
  safepoint verify runs/digits         read every byte again

A REF is a run and a snapshot of it: RUN (the newest), RUN@best, RUN@best:METRIC, RUN@STEP, RUN@TAG, RUN@id:NUMBER.

Exit codes: 0 done, 2 usage, 4 does not fit or differs, 5 damaged, 10 not found; docs/cli.md has all.
"""


def module_of(command: str) -> str:
    """The module of a command, and the function in it: `verify_resume`, `import_`."""
    name = command.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


class _Program(click.Group):
    """Imports a command's module when it is asked for: `safepoint log` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        name = module_of(cmd_name)
        command = getattr(importlib.import_module(f"safepoint.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(_no_command(args[0], self.list_commands(ctx)), ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for section, names in SECTIONS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                assert command is not None
                assert command.short_help is not None
                rows.append((name.ljust(width), command.short_help))
            with formatter.section(section):
                formatter.write_dl(rows)


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import importlib.metadata

    try:
        version = importlib.metadata.version("safepoint")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        version = "(not installed)"
    click.echo(f"safepoint {version}")
    ctx.exit()


program = _Program(
    "safepoint",
    help="Save, load and resume neural networks: look at what was saved, check it, keep what matters.",
    epilog=_EPILOG,
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    subcommand_metavar="COMMAND [ARGS]...",
    no_args_is_help=True,
)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end the program
            stream.reconfigure(errors="replace")
    as_json = "--json" in arguments
    try:
        result: Any = program.main(list(arguments), standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except (click.Abort, KeyboardInterrupt):
        return report(None, code="interrupted", exit_code=130, as_json=as_json)
    except click.ClickException as error:
        return report(error, code="usage", exit_code=error.exit_code, as_json=as_json)
    except SafepointError as error:
        return report(error, code=error.code, exit_code=error.exit_code, as_json=as_json)
    except BrokenPipeError:  # `safepoint log | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a person must not see a traceback
        if os.environ.get("SAFEPOINT_TRACEBACK"):
            raise
        return report(error, code="unexpected", exit_code=1, as_json=as_json)
    return result if isinstance(result, int) else 0


def _no_command(name: str, names: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    return f"there is no command {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
