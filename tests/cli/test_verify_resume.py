"""`safepoint verify-resume` on small scripts: the exact one passes, each wrong one is told what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli import forked
from tests.cli.test_program import FRAMEWORKS, asked_for

from safepoint.api.checkpoint import Checkpoint
from safepoint.cli.exactness.records import read_moments

EXACT = """
import sys
import numpy as np
import safepoint

def main(total):
    np.random.seed(0)
    state = {"w": np.zeros(8), "momentum": np.zeros(8)}
    rng = np.random.default_rng(0)
    checkpoint = safepoint.Checkpoint(state=state, rng=rng)
    manager = safepoint.CheckpointManager(checkpoint, "runs/x")
    for step in manager.steps(total):
        error = state["w"] - rng.standard_normal(8) - np.random.standard_normal(8)
        state["momentum"] = 0.9 * state["momentum"] + error
        state["w"] -= 0.01 * state["momentum"]
        manager.save(metrics={"loss": float((error**2).sum())})

main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
"""
RESUME = "manager.steps(total)"

# What is wrong → how to make the exact script so, the kind of finding, its name, and words of its message and hint.
WRONG: dict[str, tuple[dict[str, str], str, str, tuple[str, ...]]] = {
    "a generator of its own that is not tracked": (
        {", rng=rng)": ")"},
        "untracked",
        "main:rng",
        ("rng in main() (numpy.random.Generator) is not tracked: after resuming at step", "Checkpoint(..., rng=rng)"),
    ),
    "momentum that is forgotten": (
        {', "momentum": np.zeros(8)}': "}; velocity = np.zeros(8)", 'state["momentum"]': "velocity"},
        "untracked",
        "main:velocity",
        ("velocity in main() (numpy.ndarray) is not tracked", "Checkpoint(..., velocity=velocity)"),
    ),
    "a counter that is forgotten": (
        {"for step": "seen = 0\n    for step", "error = ": "seen += 1; error = seen + "},
        "untracked",
        "main:seen",
        ("seen in main() (int) is not tracked", 'Checkpoint(..., state={"seen": seen})'),
    ),
    "an attribute of an object of its own": (
        {"def main": "class Trainer:\n    pass\n\ndef main", "rng = ": "own = Trainer(); own.rng = ", ", rng=rng)": ")",
         "rng.standard": "own.rng.standard"},
        "untracked",
        "main:own.rng",
        ("own.rng in main() (numpy.random.Generator) is not tracked",),
    ),
    "random=False": (
        {'"runs/x")': '"runs/x", random=False)'},
        "random",
        "random/numpy",
        ("NumPy's random state is not tracked: after resuming at step", "CheckpointManager(random=True)"),
    ),
    "seeding after resuming": (
        {"for step": "manager.resume()\n    np.random.seed(1)\n    for step",
         RESUME: "range(manager._last_step() + 1, total)",
         "save(": "save(step, "},
        "random",
        "random/numpy",
        ("NumPy's random state was equal after resuming at step", "seeds"),
    ),
    "data whose position is lost": (
        {"rng = ": "draw = (n * np.ones(8) for n in range(99)); rng = ", "- rng.standard_normal(8)": "- next(draw)"},
        "untracked",
        "main:draw",
        ("draw in main() (generator) is not tracked: a resumed run reads it from its beginning", "safepoint.Resumable"),
    ),
    "save without resume": (
        {RESUME: "range(total)", "save(": "save(step, "},
        "not_resuming",
        "",
        ("the script does not resume: it calls save() without resume()", "manager.steps"),
    ),
    "resume(fresh=True)": (
        {RESUME: "manager.steps(total, fresh=True)"},
        "not_resuming",
        "",
        ("the script does not resume: its second run began at step 0, though step", "without fresh="),
    ),
    "another directory each time": (
        {'"runs/x"': 'f"runs/{__import__(\'os\').getpid()}"'},
        "not_resuming",
        "",
        ("the script does not resume: its second run saved to", "use the same directory in every run"),
    ),
    "steps of one process instead of the whole run": (
        {RESUME: "range(manager.resume(), manager._last_step() + 5)", "save(": "save(step, "},
        "steps",
        "",
        ("the resumed run went to step", "count steps of the whole run"),
    ),
    "a step left out after resuming": (
        {RESUME: "range((start := manager.resume()) + (start > 0), total)", "save(": "save(step, "},
        "steps",
        "",
        ("after resuming at step", "the next save is of step"),
    ),
    "an order of data that depends on the time": (
        {"rng = np.random.default_rng(0)":
         "order = np.random.default_rng(__import__('time').time_ns()).permutation(99_999)\n    "
         "rng = np.random.default_rng(0)", "error = ": "error = order[step] + "},
        "not_reproducible",
        "metrics/loss",
        ("two runs of this script differ before any kill: metrics/loss at step 0", "order in main() (numpy.ndarray)"),
    ),
    "a metric that is a time": (
        {'"loss":': '"seconds": __import__("time").time(), "loss":'},
        "not_reproducible",
        "metrics/seconds",
        ("two runs of this script differ before any kill", "--ignore 'metrics/seconds'"),
    ),
    "a load_state_dict that forgets": (
        {"def main": "class Half(dict):\n    def state_dict(self): return dict(self)\n"
         "    def load_state_dict(self, new): self['a'] = new['a']\n\ndef main",
         "rng=rng)": "rng=rng, half=half)", "state = ": "half = Half(a=1, b=1); state = ",
         "error = ": "half['b'] += 1; error = "},
        "not_restored",
        "half/b",
        ("half/b is not what was saved, right after resuming at step",),
    ),
    "an error that only a resumed run meets": (
        {"for step": "if manager.resume():\n        raise ValueError('no such thing')\n    for step"},
        "failed",
        "",
        ("the script failed when it was started again after step", "ValueError: no such thing"),
    ),
    "no save at all": (
        {RESUME: "range(total)", "manager.save(": "dict("}, "saved_nothing", "", ("the script saved nothing",)
    ),
    "a policy that is never due": (
        {'"runs/x")': '"runs/x", save=[safepoint.EveryMinutes(60)])', RESUME: "range(manager.resume(), total)",
         "save(": "save(step, "},
        "saved_nothing",
        "",
        ("it called save 20 times, and no policy was ever due",),
    ),
}  # fmt: skip


def script_of(folder: Path, changes: dict[str, str] | None = None) -> Path:
    text = EXACT
    for old, new in (changes or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "train.py").write_text(text)
    return Path("train.py")


@pytest.fixture
def here(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(disk)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    return disk


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No new interpreter for each run, which takes longer than all that a small script does."""
    monkeypatch.setattr("safepoint.cli.exactness.runs.subprocess", forked)


def test_an_exact_script_passes_and_leaves_nothing_behind(safepoint: Callable[..., Any], here: Path) -> None:
    result = safepoint("verify-resume", "--kills", 3, script_of(here), "30")
    assert result.code == 0, result.out + result.err
    assert "✓ exact" in result.out
    assert "30 saves" in result.out
    assert sorted(path.name for path in here.iterdir()) == ["train.py"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(safepoint: Callable[..., Any], here: Path, wrong: str) -> None:
    changes, kind, name, words = WRONG[wrong]
    result = safepoint("verify-resume", "--kills", 1, "--json", script_of(here, changes))
    assert result.code == 4, result.out + result.err
    finding = result.json["findings"][0]
    assert finding["kind"] == kind, result.json
    assert finding["name"] == name or not name
    told = " ".join(f"{f['message']} {f['hint']}" for f in result.json["findings"])
    for word in words:
        assert word in told
    assert Path(result.json["directory"]).is_dir()


@pytest.mark.usefixtures("quick")
def test_a_name_that_may_differ_is_left_out(safepoint: Callable[..., Any], here: Path) -> None:
    script = script_of(here, WRONG["a metric that is a time"][0])
    result = safepoint("verify-resume", "--kills", 1, "--ignore", "metrics/seconds", script)
    assert result.code == 0, result.out + result.err


def test_a_script_that_fails_by_itself_is_shown_with_its_words(safepoint: Callable[..., Any], here: Path) -> None:
    (here / "train.py").write_text("print('reading')\nraise FileNotFoundError('digits.csv')\n")
    result = safepoint("verify-resume", "train.py")
    assert result.code == 1
    assert "train.py failed by itself, with exit code 1" in result.err
    assert "reading" in result.err
    assert 'train.py", line 2, in <module>' in result.err
    assert "FileNotFoundError: digits.csv" in result.err
    assert "exactness" not in result.err


@pytest.mark.usefixtures("quick")
def test_a_run_too_short_to_be_killed_is_refused(safepoint: Callable[..., Any], here: Path) -> None:
    result = safepoint("verify-resume", script_of(here), "1")
    assert result.code == 1
    assert "saves too seldom" in result.err


def test_the_script_sees_what_python_would_show_it(safepoint: Callable[..., Any], here: Path) -> None:
    (here / "other").mkdir()
    (here / "other" / "neighbour.py").write_text("NAME = 'found'\n")
    (here / "other" / "show.py").write_text(
        "import json, os, pickle, sys, neighbour\n"
        "class Own: pass\n"
        "assert type(pickle.loads(pickle.dumps(Own()))) is Own\n"
        "print(json.dumps([sys.argv, sys.path[0], os.getcwd(), __name__, __file__, neighbour.NAME, str(__spec__)]))\n"
        "sys.exit(3)\n"
    )
    command = [sys.executable, "other/show.py", "-x", "--kills", "a b"]
    expected = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    result = safepoint("verify-resume", "other/show.py", "-x", "--kills", "a b")
    assert "failed by itself, with exit code 3" in result.err
    assert json.loads(expected) == json.loads(result.err.partition("found:")[2].partition("next:")[0])


@pytest.mark.usefixtures("quick")
def test_the_users_own_repositories_are_read_and_never_touched(safepoint: Callable[..., Any], here: Path) -> None:
    for name in ("runs/x", "pretrained"):
        Checkpoint(state={"w": np.ones(8)}).save(name, step=7)

    def everything() -> dict[str, tuple[bytes, int, int]]:
        files = [path for name in ("runs", "pretrained") for path in (here / name).rglob("*") if path.is_file()]
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in files}

    before = everything()
    start = [
        'w = {"w": np.zeros(8)}',
        'safepoint.Checkpoint(state=w).restore("pretrained")',
        'assert w["w"].sum() == 8',
        'if not safepoint.Repository("pretrained").resolve("latest").tags:',
        '    safepoint.Repository("pretrained").tag("latest", "used")',
        'state = {"w": w["w"], "momentum"',
    ]
    end = ['safepoint.Checkpoint(state=state).save("finished")', 'safepoint.Checkpoint(state=state).save("pretrained")']
    changes = {
        'state = {"w": np.zeros(8), "momentum"': "\n    ".join(start),
        "\nmain(int(": "\n".join(["", *(f"    {line}" for line in end), "", "main(int("]),
    }
    result = safepoint("verify-resume", "--kills", 1, script_of(here, changes))
    assert result.code == 0, result.out + result.err
    assert everything() == before
    assert not (here / "finished").exists()


def test_it_imports_no_framework(here: Path) -> None:
    code, asked = asked_for("verify-resume", "--kills", "1", str(script_of(here)), "6")
    assert code == 0
    assert not asked & FRAMEWORKS


def test_a_folder_that_holds_something_is_refused(safepoint: Callable[..., Any], here: Path) -> None:
    result = safepoint("verify-resume", "--directory", here, script_of(here))
    assert result.code == 6
    assert "is not empty" in result.err


@pytest.mark.usefixtures("quick")
def test_what_the_runs_wrote_is_kept_where_it_was_asked_for(safepoint: Callable[..., Any], here: Path) -> None:
    result = safepoint("verify-resume", "--kills", 2, "--directory", here / "kept", "--json", script_of(here))
    assert result.code == 0
    assert result.json["exact"]
    resumed = [read_moments(here / "kept" / "killed" / f"records-{number}.jsonl")[0] for number in (1, 2)]
    assert [kill["newest_snapshot"] for kill in result.json["kills"]] == [moment.step for moment in resumed]
    logs = sorted(str(path.relative_to(here / "kept")) for path in (here / "kept").rglob("log-*.txt"))
    assert logs == ["killed/log-0.txt", "killed/log-1.txt", "killed/log-2.txt", "uninterrupted/log-0.txt"]


@pytest.mark.usefixtures("quick")
def test_the_same_seed_kills_at_the_same_steps(safepoint: Callable[..., Any], here: Path) -> None:
    script = script_of(here)
    steps = [
        [kill["step"] for kill in safepoint("verify-resume", "--seed", 5, "--kills", 2, "--json", script).json["kills"]]
        for _ in range(2)
    ]
    assert steps[0] == steps[1]
