"""Every figure that safepoint promises, with its goal beside it: prints a table, and keeps it under results/.

python benchmarks/bench_goals.py [--rounds 5] [--directory DIR] [--rows save,stall,...] [--blocks 12] [--large]

To share a machine, measure rows at a time (`--rows save --json save.json`) and `--join *.json` them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import rows_disk
import rows_inside
import rows_models_jax
import rows_models_torch
import rows_stall
import rows_variety
from results import Row, keep, markdown

ROWS: dict[str, Callable[..., list[Row]]] = {
    "save": rows_disk.durable_save,
    "restore": rows_disk.restore,
    "open": rows_disk.open_first_tensor,
    "frozen": rows_variety.frozen_backbone,
    "small": rows_variety.small_tensors,
    "inside": rows_inside.inside,
    "history": rows_variety.long_history,
    "stall": rows_stall.torch_stall,
    "overlap": rows_stall.overlap,
    "keras": rows_stall.keras_stall,
    "jax": rows_stall.jax_stall,
    "models_jax": rows_models_jax.jax_models,
    "load_model": rows_variety.load_model,
    "torch_models": rows_models_torch.whole_models,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None, help="where to write; a real disk, not tmpfs")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which, of {', '.join(ROWS)}")
    parser.add_argument("--blocks", type=int, default=12, help="of the transformer: 12 are 1.49 GB with AdamW")
    parser.add_argument("--large", action="store_true", help="the rows of the disk again with 8 GB of state")
    parser.add_argument("--json", type=Path, help="measure in this process, and write the rows there")
    parser.add_argument("--join", type=Path, nargs="*", help="make the page of rows that were written there before")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if arguments.json is not None:
        rows = [row for name in names for row in _measured(name, arguments)]
        arguments.json.write_text(json.dumps([asdict(row) for row in rows]))
        return
    if arguments.join:
        rows = [row for file in arguments.join for row in _read(file)]
    else:
        rows = list(_in_processes(names, arguments))
    text = markdown(rows, arguments.rounds)
    print(text)
    print(f"kept as {keep(text, Path(__file__).parent / 'results')}", file=sys.stderr)


def _measured(name: str, arguments: argparse.Namespace) -> list[Row]:
    print(f"-- {name}", file=sys.stderr)
    with _folder(arguments.directory) as root:
        rows = ROWS[name](root, arguments.rounds, rows_disk.BLOCKS_OF_8_GB if arguments.large else arguments.blocks)
    return [row.titled("8 GB: ") for row in rows] if arguments.large else rows


def _read(file: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(file.read_text())]


def _in_processes(names: list[str], arguments: argparse.Namespace) -> Iterator[Row]:
    """One process a group of rows: what one leaves in memory is not another's."""
    parts = [(name, False) for name in names]
    parts += [(name, True) for name in ("save", "restore") if arguments.large]
    with _folder(arguments.directory) as root:
        for number, (name, large) in enumerate(parts):
            file = root / f"{number}.json"
            rounds = 1 if large else arguments.rounds
            command = [sys.executable, __file__, "--rows", name, "--rounds", str(rounds), "--json", str(file)]
            command += ["--blocks", str(arguments.blocks), *(["--large"] if large else [])]
            command += ["--directory", str(arguments.directory)] if arguments.directory else []
            subprocess.run(command, check=True)
            yield from _read(file)


@contextmanager
def _folder(directory: Path | None) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(dir=directory or Path.cwd(), prefix="bench-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
