"""The command line: one module a command, the library's own verbs; no command imports a framework."""

from __future__ import annotations


def main() -> None:
    """Run `safepoint` with the arguments of this process, and exit."""
    import sys

    from safepoint.cli.program import run

    sys.exit(run(sys.argv[1:]))
