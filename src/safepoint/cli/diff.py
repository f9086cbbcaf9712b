"""`safepoint diff`: what changed between two snapshots or files, structure first, then how far each tensor moved."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, plain
from safepoint.errors import MismatchError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safepoint.api.compare import Difference, Moved


@command(
    short="Show what changed between two snapshots or files.",
    examples=[
        "safepoint diff runs/digits@0 runs/digits@best",
        "safepoint diff base.safetensors tuned.pt --rename '^bert[.]=encoder.'",
        "safepoint diff a.pt b.pt --top 10 --md",
    ],
    quiet="Print names only, one a line.",
)
@click.argument("first")
@click.argument("second")
@click.option("--rename", multiple=True, metavar="REGEX=NEW", help="Rename the first's tensors; may be repeated.")
@click.option("--top", type=click.IntRange(min=1), help="Show only the N that moved most.")
@click.option("--md", "as_md", is_flag=True, help="Markdown, for a pull request.")
@click.option("--exit-code", is_flag=True, help="Exit code 4 if anything differs.")
def diff(
    first: str,
    second: str,
    rename: tuple[str, ...],
    top: int | None,
    as_md: bool,
    exit_code: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Show what changed between two snapshots, models or files of any format.

    First what was added, removed, reshaped and retyped; then, for each tensor that moved, the most first: the norm of
    the difference by that of the first, the largest difference, the cosine, the share of elements that changed, and of
    matrices the rank of the change: low where adapters (LoRA) were merged, 0 where only rounding changed.

    Where the two have no name in common, but would without a prefix of one (`model/`, `module.`), it is left out.

    Between snapshots and models of safepoint, blocks that are equal are not read, and the numbers are over those that
    differ.
    """
    _import_numpy()
    from safepoint.api.compare import compare
    from safepoint.api.open import open as open_any
    from safepoint.cli.output import emit, emit_lines, progress_bar

    bar = progress_bar("compare", hidden=as_json or quiet)
    with open_any(first) as before, open_any(second) as after, bar as progress:
        found = compare(before, after, rules=rename_rules(rename), progress=progress)
    moved = found.moved[:top]
    if quiet:
        named = [*found.added, *found.removed, *found.reshaped, *found.retyped, *found.values]
        emit_lines(list(dict.fromkeys([*named, *(item.name for item in moved), *found.opaque])))
    elif as_json:
        emit(_document(first, second, found, moved))
    elif as_md:
        _print_markdown(first, second, found, moved)
    else:
        _print(first, second, found, moved, asked=bool(rename))
    return MismatchError.exit_code if exit_code and not found.is_empty else 0


def rename_rules(rename: tuple[str, ...]) -> dict[str, str] | None:
    """What `--rename REGEX=NEW` says, in order.

    Raises:
        UnsupportedError: one has no `=`.
    """
    rules: dict[str, str] = {}
    for rule in rename:
        pattern, equals, new = rule.partition("=")
        if not equals:
            raise UnsupportedError(f"--rename {rule!r} has no =", expected="REGEX=NEW", hint="--rename '^old=new'")
        rules[pattern] = new
    return rules or None


def _import_numpy() -> None:
    """With one thread of linear algebra: there is one for each core already, and theirs wait for each other."""
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ or "numpy" in sys.modules:
        return
    os.environ[name] = "1"
    import numpy as np  # looks at it when it is imported, and never again

    del os.environ[name], np


def _structure(found: Difference) -> list[tuple[str, str, str]]:
    """(what happened, name, how)."""
    from safepoint.tree import describe

    rows = [("added", name, "") for name in found.added]
    rows += [("removed", name, "") for name in found.removed]
    rows += [("reshaped", name, f"{a} → {b}") for name, (a, b) in found.reshaped.items()]
    rows += [("retyped", name, f"{a.dtype} → {b.dtype}") for name, (a, b) in found.retyped.items()]
    rows += [("value", name, f"{describe(a)} → {describe(b)}") for name, (a, b) in found.values.items()]
    return rows + [("bytes", name, "") for name in found.opaque]


def _numbers(item: Moved) -> list[str]:
    cosine = "" if item.cosine is None else f"{item.cosine:.4f}"
    return [f"{item.relative:.3g}", f"{item.largest:.3g}", cosine, f"{100 * item.share:.3g} %", _rank(item)]


def _rank(item: Moved) -> str:
    from safepoint.api.change_rank import MOST_RANKS

    return "" if item.rank is None else f"{item.rank}{'+' if item.rank == MOST_RANKS < (item.full_rank or 0) else ''}"


def _title(found: Difference, moved: tuple[Moved, ...]) -> str:
    hidden = len(found.moved) - len(moved)
    more = f" ({hidden:,} not shown)" if hidden else ""
    low = f"; matrices by rank {found.low_rank} at most, as adapters (LoRA) do" if found.low_rank else ""
    low = "; matrices by no more than rounding" if found.low_rank == 0 else low
    return f"{count(len(found.moved), 'tensor')} moved{more}, {found.equal:,} equal{low}"


def _spelled(rules: Mapping[str, str]) -> str:
    return " ".join(f"--rename {shlex.quote(f'{pattern}={new}')}" for pattern, new in rules.items())


def _print(first: str, second: str, found: Difference, moved: tuple[Moved, ...], *, asked: bool) -> None:
    from safepoint.cli.output import cell, headline, stdout, table

    console = stdout()
    console.print(headline((first, "bold"), (second, "bold"), (_title(found, moved), "bold cyan")))
    if not asked and found.rules:
        console.print(cell("no name is in both; compared as by " + _spelled(found.rules), "dim"))
    structure = _structure(found)
    if structure:
        rows = table("", "name", "how", fold=("name", "how"))
        for what, name, how in structure:
            rows.add_row(cell(what, "cyan"), cell(name), cell(how))
        console.print()
        console.print(rows)
    if moved:
        columns = ("relative", "largest", "cosine", "changed", "rank")
        rows = table("name", *columns, right=columns, fold=("name",))
        for item in moved:
            rows.add_row(cell(item.name), *map(cell, _numbers(item)))
        console.print()
        console.print(rows)


def _print_markdown(first: str, second: str, found: Difference, moved: tuple[Moved, ...]) -> None:
    lines = [f"**{_escaped(first)} → {_escaped(second)}**: {_title(found, moved)}", ""]
    lines += [f"- {what} `{_escaped(name)}` {_escaped(how)}".rstrip() for what, name, how in _structure(found)]
    if moved:
        lines += ["", "| name | relative | largest | cosine | changed | rank |", "|---|---:|---:|---:|---:|---:|"]
        lines += [f"| `{_escaped(item.name)}` | {' | '.join(_numbers(item))} |" for item in moved]
    click.echo("\n".join(lines))


def _escaped(text: str) -> str:
    """Text that cannot end a cell, a code span or start markup."""
    return plain(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _document(first: str, second: str, found: Difference, moved: tuple[Moved, ...]) -> dict[str, Any]:
    from safepoint.cli.subject import as_json

    return {
        "first": first,
        "second": second,
        "rename": dict(found.rules),
        "same": found.is_empty,
        "equal": found.equal,
        "low_rank": found.low_rank,
        "added": list(found.added),
        "removed": list(found.removed),
        "reshaped": {name: [str(a), str(b)] for name, (a, b) in found.reshaped.items()},
        "retyped": {name: [str(a), str(b)] for name, (a, b) in found.retyped.items()},
        "values": {name: [as_json(a), as_json(b)] for name, (a, b) in found.values.items()},
        "bytes": list(found.opaque),
        "moved": [
            {
                "name": item.name,
                "relative": as_json(item.relative),
                "largest": as_json(item.largest),
                "cosine": as_json(item.cosine),
                "share": item.share,
                "rank": item.rank,
                "full_rank": item.full_rank,
            }
            for item in moved
        ],
    }
