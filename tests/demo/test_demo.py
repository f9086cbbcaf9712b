"""`safepoint demo` with real frameworks, in real processes, really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FRAMEWORKS = ["keras", "torch"]


def start(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safepoint", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def run_json(*arguments: str, folder: Path) -> Any:
    result = start(*arguments, "--json", folder=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module", params=FRAMEWORKS)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return run_json("demo", "--framework", request.param, folder=folder), folder


def test_it_was_killed_in_the_middle_of_an_epoch_and_resumed(shown) -> None:
    document, _ = shown
    killed, resumed = document["killed"], document["resumed"]
    assert 0 < killed["step"] < document["steps"] - 1
    assert killed["signal"] == "SIGKILL"
    assert resumed["first_step"] == resumed["newest_snapshot"] + 1
    assert resumed["newest_snapshot"] <= killed["step"]


def test_the_resumed_run_is_the_run_that_was_never_killed(shown) -> None:
    document, _ = shown
    assert document["equal"] is True
    assert document["difference"] is None
    assert document["digests"]["reference"] == document["digests"]["resumed"]
    assert document["compared"]["tensors"] > 15


def test_the_whole_model_is_one_file_that_predicts_the_same_in_a_new_process(shown) -> None:
    model = shown[0]["model"]
    assert (shown[1] / model["path"]).stat().st_size == model["bytes"]
    assert model["same_predictions"] is True
    assert model["accuracy"] > 0.95


def test_what_it_left_can_be_looked_at(shown) -> None:
    document, folder = shown
    run, model = document["run"]["path"], document["model"]["path"]
    assert len(run_json("log", run, folder=folder)["snapshots"]) == document["run"]["snapshots"]
    names = {tensor["name"] for tensor in run_json("show", run, folder=folder)["tensors"]}
    assert "history/loss" in names
    assert run_json("verify", run, folder=folder)["ok"] is True
    assert run_json("show", model, folder=folder)["tensors"]
    assert run_json("verify", model, folder=folder)["ok"] is True


def test_each_save_held_training_up_for_less_than_a_second(shown) -> None:
    stall = shown[0]["stall"]
    assert stall["saves"] >= 20
    assert 0 < stall["median_seconds"] < 1


def test_it_works_a_second_time_and_ends_with_what_to_run_next(tmp_path: Path) -> None:
    (tmp_path / "safepoint-demo").mkdir()
    (tmp_path / "safepoint-demo" / "mine").touch()
    result = start("demo", "--framework", "torch", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "equal, bit for bit" in result.stdout
    for command in ("log", "show", "verify"):
        assert f"{command} safepoint-demo-2/run" in result.stdout
    assert [path.name for path in (tmp_path / "safepoint-demo").iterdir()] == ["mine"]


def test_a_script_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    command = [sys.executable, "-m", "safepoint", "demo", "--framework", "torch", "--directory", "demo"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "broken on purpose" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safepoint", "demo", "--framework", "torch", "--directory", "demo"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would the demo
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not (tmp_path / "demo" / "run" / "safepoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):  # nothing of its session is left
        os.killpg(process.pid, 0)
