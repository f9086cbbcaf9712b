"""What objects look like at a prompt and in a notebook: short, static, and escaped, whatever names are."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import safepoint
from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor, notebook_table

from .conftest import safetensors_bytes

HOSTILE = "<script>alert('x')</script>\"onload=\"y&<img src=x onerror=z>"
ALLOWED = {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """Fails on any element that could do something, and on every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        assert attrs == []

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


@pytest.fixture
def run(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "a run")
    tree = StateTree({f"model/{HOSTILE}": Tensor.of(np.zeros((3, 4), np.float32))}, Branch("dict"))
    repository.commit(
        tree, step=7, metrics={HOSTILE: 0.25}, config={HOSTILE: HOSTILE}, tags=["start"], environment={HOSTILE: HOSTILE}
    )
    return repository


def test_a_run_and_its_snapshots(run: Repository) -> None:
    text = Reader(run._repr_html_()).text
    assert "a run" in text
    assert f"{HOSTILE} 0.25" in text
    (snapshot,) = run.snapshots
    assert repr(snapshot) == f"<snapshot 0: step 7, {HOSTILE} 0.25, start, 1 tensors, 48 bytes>"
    text = Reader(snapshot._repr_html_()).text
    assert HOSTILE in text
    assert "48 bytes" in text
    assert "no repository" not in text


def test_a_run_that_is_not_there_or_damaged_is_shown_all_the_same(run: Repository, tmp_path: Path) -> None:
    assert "nothing at" in Reader(Repository(tmp_path / "nowhere <b>")._repr_html_()).text
    file = Path(run.location) / "snapshots" / "00000000.json"
    file.chmod(0o644)
    file.write_bytes(b"<script>")
    assert "damaged" in Reader(Repository(run.location)._repr_html_()).text


def test_an_open_file(tmp_path: Path) -> None:
    tensors = {HOSTILE: np.zeros((2, 3), np.float32), **{f"w{i}": np.zeros(1) for i in range(70)}}
    (tmp_path / "file").write_bytes(safetensors_bytes(tensors))
    with safepoint.open(tmp_path / "file") as opened:
        assert repr(opened).endswith("file: 71 tensors, 584 bytes>")
        text = Reader(opened._repr_html_()).text
    assert f"{HOSTILE} float32 [2, 3] 24" in text
    assert "21 more" in text


def test_a_report(tmp_path: Path) -> None:
    odd = "<img src=x>&\"'"
    safepoint.Checkpoint(model={"a": np.zeros(2)}).save(tmp_path / "run")
    live = {"a": np.ones(2), odd: np.zeros(2)}
    report = safepoint.Checkpoint(model=live).restore(tmp_path / "run", strict=False)
    assert repr(report) == f"<restored 1 of 2 names from {tmp_path / 'run'}, step 0>"
    assert f"not in the snapshot: model/{odd}" in Reader(report._repr_html_()).text


def test_control_characters_and_long_words_do_not_pass() -> None:
    shown = notebook_table("a\x1b[31m\u202eb", ("x",), [("y" * 5000,)], more=3)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown) < 600
