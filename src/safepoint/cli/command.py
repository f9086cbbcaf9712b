"""What all commands have in common: `--json`, `--quiet`, and examples at the end of their help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

_WIDTH = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def command(
    *, short: str, examples: Sequence[str], quiet: str, script: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function called like it; its docstring is the help.

    Args:
        short: its line in `safepoint --help`.
        examples: command lines for the end of the help.
        quiet: what `--quiet` leaves of the output.
        script: its last arguments are a script's; options after the script are the script's own.
    """
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)

    def decorate(function: Callable[..., Any]) -> click.Command:
        function = click.option("-q", "--quiet", is_flag=True, help=quiet)(function)
        function = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)
        name = function.__name__.rstrip("_").replace("_", "-")
        settings = {**_WIDTH, "allow_interspersed_args": not script}
        return click.command(name, short_help=short, epilog=epilog, context_settings=settings)(function)

    return decorate


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--yes`: without it, what deletes only tells."""
    return click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")(function)
