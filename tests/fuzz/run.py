"""Coverage-guided fuzzing of each parser with atheris: `make fuzz [MINUTES=30] [PARSER=pickle]`.

A finding is written to `tests/fuzz/corpus/<parser>/` by libFuzzer, where `test_corpus.py` replays it for ever.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fuzz(name: str, seconds: int, seed: int) -> None:
    """This process becomes libFuzzer."""
    import atheris

    with atheris.instrument_imports(include=["safepoint"]):
        from tests.fuzz.parsers import CORPUS, MOST_BYTES, PARSERS
    parser = PARSERS[name]
    found = CORPUS / name
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for number, data in enumerate(parser.seeds):
            (Path(work) / f"{number}").write_bytes(data)
        limits = ["-timeout=10", "-rss_limit_mb=2048", f"-max_len={MOST_BYTES}", f"-artifact_prefix={found}/"]
        arguments = [f"-max_total_time={seconds}", f"-seed={seed}", *limits, "-print_final_stats=1", work, str(found)]
        atheris.Setup([sys.argv[0], *arguments], lambda data: void(parser.check(data)))
        atheris.Fuzz()


def void(_: object) -> None:
    """LibFuzzer wants None."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--parser", default="")
    options.add_argument("--become", default="")
    chosen = options.parse_args()
    if chosen.become:
        fuzz(chosen.become, round(chosen.minutes * 60), chosen.seed)
        return 0
    from tests.fuzz.parsers import PARSERS

    failed = []
    print("| Parser | Executions | Seconds | Findings |\n|---|---:|---:|---:|")
    for name in [chosen.parser] if chosen.parser else PARSERS:
        command = [
            sys.executable,
            __file__,
            "--become",
            name,
            "--minutes",
            str(chosen.minutes),
            "--seed",
            str(chosen.seed),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        ran = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(
            f"| {name} | {ran[0] if ran else '?'} | {chosen.minutes * 60:g} | {int(done.returncode != 0)} |", flush=True
        )
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
