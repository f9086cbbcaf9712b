"""What the demo says at its end: what was shown, what is where, and what to run next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safepoint.cli.text import count, size


def print_summary(document: Mapping[str, Any], *, quiet: bool) -> None:
    """Print it to stdout; `quiet` leaves one line."""
    from rich.table import Table

    from safepoint.cli.output import cell, stdout

    console = stdout()
    equal, model = document["equal"], document["model"]
    verdict = "equal, bit for bit" if equal else "NOT EQUAL"
    if quiet:
        console.print(cell(f"{document['directory']}: the killed run and the undisturbed one are {verdict}"))
        return
    killed, resumed, stall, run = document["killed"], document["resumed"], document["stall"], document["run"]
    compared = (
        f"{count(document['compared']['tensors'], 'tensor')} and {count(document['compared']['values'], 'value')}"
    )
    again = f"{count(resumed['repeated'], 'step')} done again"
    of_all = f"step {killed['step']} of {document['steps']}"
    same = "same predictions" if model["same_predictions"] else "OTHER predictions"
    mean, longest = (f"{stall[f'{key}_seconds'] * 1000:.1f} ms" for key in ("median", "longest"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    yes, no = cell("✓", "bold green"), cell("✗", "bold red")
    rows = [
        (yes, "killed", f"SIGKILL in epoch {killed['epoch']}, batch {killed['batch']}: {of_all}"),
        (yes, "resumed", f"in a new process from step {resumed['newest_snapshot']}, {again}"),
        (yes if equal else no, "compared", f"{compared}: {verdict}"),
        *((cell(""), "", digest) for digest in document["digests"].values()),
        (
            yes if model["same_predictions"] else no,
            "loaded",
            f"in a new process: {same}, {model['accuracy']:.1%} of unseen digits right",
        ),
        (cell(""), "", ""),
        (cell(""), "run", f"{run['path']}: {count(run['snapshots'], 'snapshot')}, {size(run['stored_bytes'])}"),
        (cell(""), "model", f"{model['path']}: whole model, one file, {size(model['bytes'])}"),
        (cell(""), "stall", f"{mean} a save, {longest} at most; {count(stall['saves'], 'save')} in the background"),
        (cell(""), "took", f"{document['seconds']:.0f} s"),
    ]
    for sign, word, text in rows:
        grid.add_row(sign, cell(word, "bold" if sign.plain else "dim"), cell(text, "" if word else "dim"))
    console.print()
    console.print(grid)
    console.print()
    console.print(cell("next", "bold"))
    program = _program()
    for arguments in (
        f"log {run['path']}",
        f"show {run['path']}@best",
        f"show {model['path']}",
        f"verify {run['path']}",
    ):
        console.print(cell(f"  {program} {arguments}", "cyan"))


def _program() -> str:
    """How to call this program again from here."""
    if shutil.which("safepoint"):
        return "safepoint"
    called = sys.argv[0]
    if Path(called).name == "safepoint":
        return os.path.relpath(called)
    return "python -m safepoint"
