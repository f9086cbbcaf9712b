"""`safepoint show` of files that safepoint did not write; `--stats`, `--sort`, `--csv`, of snapshots too."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.open.conftest import safetensors_bytes

from safepoint.repository import Repository

TENSORS = {
    "encoder.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "encoder.bias": np.zeros(3, np.float32),
    "broken": np.array([1, np.nan, np.inf, -2], np.float32),
    "optimizer/exp_avg": np.full(5, 0.5),
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(safetensors_bytes(TENSORS, {"format": "pt", "epoch": "7"}))
    return Path("weights")


def rows_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_file_of_anyones(weights: Path, safepoint) -> None:
    result = safepoint("show", "weights")
    rows = rows_of(result.out)
    assert rows[0].startswith("weights · safetensors file · 4 tensors · ")
    assert "framework PyTorch" in rows
    assert "parameters 24" in rows
    assert "optimizer 1 tensor, 40 B" in rows
    assert "metadata format pt; epoch 7" in rows
    assert rows[rows.index("encoder 60 B") + 1 :][:2] == ["├ weight float32 [3, 4] 48 B", "└ bias float32 [3] 12 B"]
    assert max(map(len, result.out.splitlines())) <= 80
    assert safepoint("show", "weights", "encoder.*", "-q").out == "encoder.weight\nencoder.bias\n"


def test_json_has_everything(weights: Path, safepoint) -> None:
    document = safepoint("show", "weights", "--json").json
    assert list(document) == [
        "kind", "path", "title", "framework", "file_bytes", "num_tensors", "num_elements", "num_bytes", "optimizer",
        "steps", "metadata", "tensors", "values",
    ]  # fmt: skip
    assert (document["kind"], document["num_tensors"], document["num_elements"]) == ("safetensors", 4, 24)
    assert document["metadata"] == {"metadata": {"format": "pt", "epoch": "7"}}
    measured = {row["name"]: row for row in safepoint("show", "weights", "--stats", "--json").json["tensors"]}
    weight, broken = measured["encoder.weight"], measured["broken"]
    assert (weight["min"], weight["max"], weight["mean"], weight["zeros"]) == (0, 11, 5.5, 1)
    assert weight["norm"] == pytest.approx(np.linalg.norm(TENSORS["encoder.weight"]))
    assert weight["std"] == pytest.approx(TENSORS["encoder.weight"].std())
    assert (broken["nan"], broken["inf"], broken["mean"]) == (1, 1, -0.5)
    assert broken["problems"] == ["1 NaN", "1 infinite"]
    assert measured["encoder.bias"]["problems"] == ["all zero"]
    assert measured["optimizer/exp_avg"]["problems"] == ["all the same"]


def test_what_is_wrong_stands_first(weights: Path, safepoint) -> None:
    result = safepoint("show", "weights", "--stats")
    rows = rows_of(result.out)
    start = next(index for index, row in enumerate(rows) if row.startswith("name"))
    assert [row.split()[0] for row in rows[start + 1 :]][-1] == "encoder.weight"
    assert any(row.startswith("broken 1 NaN, 1 infinite [4]") for row in rows)
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_wide_terminal_has_room_for_quantiles(weights: Path, safepoint, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = safepoint("show", "weights", "--layers", "encoder.*", "--stats").out
    assert "median" not in narrow
    call = ["show", "weights", "encoder.weight", "--stats"]
    document = safepoint(*call, "--json").json["tensors"][0]
    assert (document["q05"], document["q50"], document["q99"]) == pytest.approx((0.55, 5.5, 10.89))
    assert (document["dead_rows"], document["dead_columns"], document["same_as"]) == (0, 0, None)
    monkeypatch.setenv("COLUMNS", "140")
    (row,) = [line.split() for line in safepoint(*call).out.splitlines() if line.startswith("encoder.weight")]
    assert row[-3:] == ["0.55", "5.5", "10.4"]


def test_sorted_and_for_a_spreadsheet(weights: Path, safepoint) -> None:
    found = list(csv.DictReader(io.StringIO(safepoint("show", "weights", "--sort", "bytes", "--csv").out)))
    assert [row["name"] for row in found][:2] == ["encoder.weight", "optimizer/exp_avg"]
    assert found[0] == {"name": "encoder.weight", "dtype": "float32", "shape": "3x4", "elements": "12", "bytes": "48"}
    found = list(csv.DictReader(io.StringIO(safepoint("show", "weights", "--sort", "norm", "--csv").out)))
    assert found[0]["name"] == "encoder.weight"
    Path("odd").write_bytes(safetensors_bytes({"=1+1": np.zeros(2), "\x1b[31m": np.zeros(2)}))
    out = safepoint("show", "odd", "--csv").out
    assert "'=1+1," in out
    assert "\x1b" not in out


def test_a_snapshot_is_measured_too(run: Repository, safepoint) -> None:
    rows = {row["name"]: row for row in safepoint("show", "runs/digits", "--stats", "--json").json["tensors"]}
    assert rows["model/encoder.weight"]["mean"] == 49
    assert rows["model/encoder.bias"]["problems"] == ["all zero"]


def test_a_large_file_is_shown_at_once(tmp_path: Path) -> None:
    names = [f"layers.{index}.weight" for index in range(400)]
    table = {
        n: {"dtype": "F32", "shape": [1 << 20], "data_offsets": [i << 22, (i + 1) << 22]} for i, n in enumerate(names)
    }
    text = json.dumps(table).encode()
    with (tmp_path / "weights").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (400 << 22))  # 1.7 GB, a hole
    probe = (
        "import sys, time, numpy, rich.console, safepoint.cli.program as program;"
        "start = time.process_time(); program.run(['show', sys.argv[1]]);"
        "print(time.process_time() - start, file=sys.stderr)"
    )
    took = []
    for _ in range(3):
        command = [sys.executable, "-c", probe, str(tmp_path / "weights")]
        took.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stderr))
    assert min(took) < 0.5  # of processor time; a third of that where nothing else runs and modules are compiled


def test_no_framework_is_imported(weights: Path) -> None:
    probe = (
        "import sys; from safepoint.cli.program import run; run(['show', 'weights', '--json']);"
        "late = {'torch', 'tensorflow', 'keras', 'jax', 'h5py', 'safetensors'} & set(sys.modules);"
        "print(*sorted(late), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
