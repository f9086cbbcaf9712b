"""Every way to load without a framework, over a real file of each kind, under the audit hook; and the hook itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import audit
from tests.attacks import test_distributed, test_gguf, test_onnx, test_pytorch
from tests.attacks.watching import loads_safely, read_all

import safepoint
from safepoint.api.convert import convert
from safepoint.cli.program import run
from safepoint.repository import Repository, write_model_file
from safepoint.tree import StateTree, Tensor

ARRAYS = {"a": np.arange(600, dtype=np.float32).reshape(20, 30), "b": np.ones(7)}


def state() -> dict[str, Any]:
    return {**{name: array.copy() for name, array in ARRAYS.items()}, "n": 3}


def snapshot(folder: Path) -> Path:
    safepoint.Checkpoint(state=state()).save(folder / "run", step=1)
    safepoint.Checkpoint(state=state()).save(folder / "run", step=2)
    return folder / "run"


def model(folder: Path) -> Path:
    write_model_file(
        folder / "model", StateTree({n: Tensor.of(x) for n, x in ARRAYS.items()}), structure={}, format="test"
    )
    return folder / "model"


def converted(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            convert(model(folder), folder / name)
        return folder / name

    return write


def npy(folder: Path) -> Path:
    np.save(folder / "a.npy", ARRAYS["a"])
    return folder / "a.npy"


def gguf(folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(test_gguf.gguf([], [test_gguf.tensor()]))
    return folder / "a.gguf"


def onnx(folder: Path) -> Path:
    (folder / "a.onnx").write_bytes(test_onnx.model(test_onnx.tensor()))
    return folder / "a.onnx"


def distributed(folder: Path) -> Path:
    place = folder / "ck"
    place.mkdir()
    part = test_pytorch.archive(test_pytorch.proto(test_pytorch.tensor([4], [1])), place / "__0_0.distcp")
    (place / ".metadata").write_bytes(test_distributed.metadata(part=part))
    return place


FILES: dict[str, Callable[[Path], Path]] = {
    "snapshot": snapshot, "model file": model, "safetensors": converted("b.safetensors"), "npz": converted("b.npz"),
    "pt": converted("b.pt"), "TensorFlow checkpoint": converted("b.index"), "npy": npy, "GGUF": gguf, "ONNX": onnx,
    "distributed PyTorch": distributed,
}  # fmt: skip


def stats(path: Path) -> object:
    with safepoint.open(path) as tensors:
        return tensors.stats()


def differ(path: Path) -> object:
    with safepoint.open(path) as one, safepoint.open(path) as two:
        assert one.diff(two).is_empty
        return one


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("way", ["open", "stats", "diff", "show", "show --stats", "safepoint diff", "convert"])
def test_a_file_of_any_kind(kind: str, way: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = FILES[kind](tmp_path / "in")
    ways: dict[str, Callable[[], object]] = {
        "open": lambda: read_all(path),
        "stats": lambda: stats(path),
        "diff": lambda: differ(path),
        "show": lambda: run(["show", str(path)]),
        "show --stats": lambda: run(["show", "--stats", str(path)]),
        "safepoint diff": lambda: run(["diff", str(path), str(path)]),
        "convert": lambda: convert(path, tmp_path / "out" / os.urandom(4).hex() / "x.npz"),
    }
    loads_safely(tmp_path, ways[way])


def test_a_repository(tmp_path: Path) -> None:
    path = snapshot(tmp_path)
    repository = Repository(path)
    live = state()
    checkpoint = safepoint.Checkpoint(state=live)

    def resume() -> int:
        with safepoint.CheckpointManager(checkpoint, path, keep=[]) as manager:
            return manager.resume()

    def load() -> object:
        with repository.reading():
            manifest = repository.manifest(repository.resolve())
            return manifest.load(manifest.tree.leaves)

    ways: list[Callable[[], object]] = [
        lambda: checkpoint.restore(path), resume, load, repository.verify, repository.repair,
        repository.compact, repository.collect, lambda: Repository(path).history(),
        lambda: run(["log", str(path)]), lambda: run(["verify", str(path)]), lambda: run(["show", f"{path}@id:0"]),
    ]  # fmt: skip
    for way in ways:
        loads_safely(tmp_path, way)
    live["a"][:] = 0
    assert resume() == 3
    np.testing.assert_array_equal(live["a"], ARRAYS["a"])


def test_a_model_file(tmp_path: Path) -> None:
    path = model(tmp_path)
    loads_safely(tmp_path, lambda: run(["verify", str(path)]))
    with pytest.raises(safepoint.UnsupportedError):
        safepoint.load_model(path)
    live = {name: np.zeros_like(array) for name, array in ARRAYS.items()}
    loads_safely(tmp_path, lambda: safepoint.Checkpoint(state=live).restore(path))


# -- the hook must see what it is there for ------------------------------------------------------------------------


def as_if_ours(source: str, **names: Any) -> Callable[..., Any]:
    """A function `f` whose code seems to stand in safepoint's own sources."""
    space = dict(names)
    exec(compile(source, f"{audit.SOURCES}formats/careless.py", "exec"), space)
    found = space["f"]
    assert callable(found)
    return found


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


CARELESS = {
    "unpickles": ("def f(x): return loads(x)", {"loads": pickle.loads}, pickle.dumps(Evil())),
    "unpickles in Python": ("def f(x): return loads(x)", {"loads": pickle._loads}, pickle.dumps(Evil())),  # type: ignore[attr-defined]
    "unmarshals": ("import marshal\ndef f(x): return marshal.loads(x)", {}, b"N"),
    "evaluates": ("def f(x): return eval(x)", {}, "1 + 1"),
    "compiles": ("def f(x): return compile(x, 'x', 'eval')", {}, "1 + 1"),
    "imports by a name": ("def f(x): return __import__(x)", {}, "this_is_nowhere"),
    "imports by a name, by importlib": (
        "import importlib\ndef f(x): return importlib.import_module(x)", {}, "antigravity_",
    ),
    "starts a program": ("import subprocess\ndef f(x): return subprocess.run(x, check=True)", {}, ["true"]),
    "connects": ("import socket\ndef f(x): return socket.socket().close()", {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", CARELESS)
def test_a_careless_loader_is_caught(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, names, data = CARELESS[what]
    careless = as_if_ours(source, **names)
    (tmp_path / "antigravity_.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> None:
        sys.modules.pop("antigravity_", None)
        (tmp_path / "read").write_bytes(b"")
        with contextlib.suppress(ImportError):
            careless(data)

    load()
    assert audit.violations, "the hook of the whole suite"
    del audit.violations[:]
    with pytest.raises(AssertionError, match=r"nobody may|imported by a name|code is loaded|asked for by|not where"):
        loads_safely(tmp_path, load)
    del audit.violations[:]


def test_a_loader_that_opens_something_else_is_caught(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("")
    with pytest.raises(AssertionError, match="secret"):
        loads_safely(tmp_path / "in", (tmp_path / "secret").read_text)
