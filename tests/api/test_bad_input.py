"""Bad input: a typed error with what was expected, what was found and what to do; nothing live or saved changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

import safepoint


def live() -> dict[str, Any]:
    return {"w": np.zeros(1000), "b": np.zeros(3, np.float32), "epoch": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    state = {"w": np.arange(1000.0), "b": np.ones(3, np.float32), "epoch": 1}
    checkpoint = safepoint.Checkpoint(model=state)
    checkpoint.save("runs/digits", metrics={"loss": 1.0})
    state["w"] += 1
    checkpoint.save("runs/digits", metrics={"loss": 0.5}, tags=["good"])
    Path("notes").mkdir()
    Path("notes/notes.txt").write_text("hi")
    return Path("runs/digits")


def refused(kind: type[safepoint.SafepointError], call: Callable[[], object]) -> safepoint.SafepointError:
    before = contents(Path())
    with pytest.raises(safepoint.SafepointError) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.hint
    after = contents(Path())
    assert {name: after.get(name) for name in before} == before
    assert all("/moved/" in name for name in after.keys() - before.keys())  # damage that was found is remembered
    return caught.value


def restoring(source: str, state: dict[str, Any] | None = None, **options: Any) -> Callable[[], object]:
    state = live() if state is None else state
    before = repr(state)

    def call() -> object:
        try:
            return safepoint.Checkpoint(model=state).restore(source, **options)
        finally:
            assert repr(state) == before

    return call


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("nowhere/run", safepoint.NotFoundError, "nothing at nowhere/run.*a repository or a file.*check the path"),
        ("runs/digit", safepoint.NotFoundError, "nothing at runs/digit.*did you mean runs/digits?"),
        ("notes", safepoint.NotFoundError, "not a safepoint repository.*a folder with notes.txt.*check the path"),
        ("runs", safepoint.NotFoundError, "a folder of runs.*runs/digits.*name one of them"),
        ("notes/notes.txt", safepoint.CorruptionError, "a text file.*begins 'hi'.*check the path"),
        ("runs/digits@nope", safepoint.NotFoundError, "@nope.*steps 0, 1; tags good; metrics loss.*safepoint log"),
        ("runs/digits@7", safepoint.NotFoundError, "@7.*a step.*steps 0, 1.*safepoint log runs/digits"),
        ("runs/digits@best:acc", safepoint.NotFoundError, "best:METRIC.*metrics loss"),
    ],
)
def test_what_is_not_there(run: Path, source: str, kind: type[safepoint.SafepointError], words: str) -> None:
    assert pytest.RaisesExc(kind, match=f"(?s){words}").matches(refused(kind, restoring(source)))


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing"])
@pytest.mark.parametrize("folder", ["packs", "manifests", "snapshots"])
def test_damage(run: Path, folder: str, how: str) -> None:
    newest = max((run / folder).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    data = newest.read_bytes()
    newest.unlink()
    if how != "missing":
        flipped = data[:-5] + bytes([data[-5] ^ 4]) + data[-4:]
        newest.write_bytes({"truncated": data[: len(data) // 2], "flipped": flipped, "empty": b""}[how])
    if (folder, how) == ("snapshots", "missing"):  # nothing tells that there ever was another one
        assert safepoint.Checkpoint(model=live()).restore(run).snapshot.number == 0  # type: ignore[union-attr]
        return
    error = refused(safepoint.CorruptionError, restoring(str(run)))
    assert isinstance(error, safepoint.CorruptionError)
    assert error.file == str(newest.relative_to(run))
    assert error.expected
    assert error.found
    assert "`safepoint verify runs/digits` lists all that is damaged" in str(error)


@pytest.mark.parametrize("file", ["safepoint.json", "snapshots/00000001.json"])
def test_a_newer_format(run: Path, file: str) -> None:
    body = json.loads((run / file).read_bytes())["body"]
    text = json.dumps({**body, "version": 2}, separators=(",", ":")).encode()
    (run / file).write_bytes(b'{"digest":"%s","body":%s}\n' % (blake3.blake3(text).hexdigest().encode(), text))
    error = refused(safepoint.UnsupportedError, restoring(str(run)))
    assert (error.expected, error.found, error.hint) == ("version 1 or older", "version 2", "update safepoint")
    if file == "safepoint.json":
        refused(safepoint.UnsupportedError, lambda: safepoint.Checkpoint(model=live()).save(run))


def test_a_checkpoint_of_another_model(run: Path) -> None:
    error = refused(safepoint.MismatchError, restoring(str(run), {"kernel": np.zeros(4), "epoch": 0}))
    assert isinstance(error, safepoint.MismatchError)
    assert error.missing == ("model/kernel",)
    assert error.unexpected == ("model/w", "model/b")
    error = refused(safepoint.MismatchError, lambda: safepoint.Checkpoint(net=live()).restore(run))
    assert error.hint is not None
    assert error.hint.startswith("the snapshot tracks model: rename={'^model/': 'net/'}")
    safepoint.Checkpoint(net=live()).restore(run, rename={"^model/": "net/"})


def test_wrong_shapes_and_dtypes(run: Path) -> None:
    other = {"w": np.zeros(1001), "b": np.zeros(3), "epoch": 0}
    error = refused(safepoint.MismatchError, restoring(str(run), other))
    assert "model/w   live float64[1001], saved float64[1000]" in str(error)
    assert "model/b   live float64[3], saved float32[3]" in str(error)
    assert "cast=True converts dtypes" in str(error)


@pytest.mark.parametrize("obj", [3, "text", None, (1, 2), {"a": {"f": object()}}, {"x": {1, 2}}, {"f": len}, dict])
def test_an_untracked_type(run: Path, obj: Any) -> None:
    error = refused(safepoint.UnsupportedError, lambda: safepoint.Checkpoint(model=obj))
    assert str(error).startswith("model")


def test_a_place_that_is_taken(run: Path) -> None:
    refused(safepoint.ExistsError, lambda: safepoint.Checkpoint(model=live()).save("notes"))
    refused(safepoint.NotFoundError, lambda: safepoint.Checkpoint(model=live()).save("notes/notes.txt"))
