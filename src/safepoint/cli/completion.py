"""`safepoint completion`: the script that teaches a shell to complete commands, options and files."""

from __future__ import annotations

import click

from safepoint.cli.command import command

_SHELLS = ("bash", "zsh", "fish")


@command(
    short="Print the script that makes a shell complete safepoint.",
    examples=[
        "safepoint completion bash >> ~/.bashrc",
        "safepoint completion zsh >> ~/.zshrc",
        "safepoint completion fish > ~/.config/fish/completions/safepoint.fish",
    ],
    quiet="As without it.",
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str, as_json: bool, quiet: bool) -> None:
    """Print the script that makes a shell complete commands, options and files.

    It asks safepoint itself at each press of the key, so it is never out of date. It changes nothing by itself: put
    it where your shell looks at its start.
    """
    from click.shell_completion import get_completion_class

    from safepoint.cli.output import emit
    from safepoint.cli.program import program

    del quiet
    kind = get_completion_class(shell)
    assert kind is not None
    # Not its `source()`, which starts a bash to look at its version.
    words = kind(program, {}, "safepoint", "_SAFEPOINT_COMPLETE")
    script = words.source_template % words.source_vars()
    if as_json:
        emit({"shell": shell, "script": script})
    else:
        click.echo(script)
