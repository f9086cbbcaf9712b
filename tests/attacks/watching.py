"""What a reader does to the process while it reads a hostile file, seen by an audit hook; its time and memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from tests import audit

import safepoint

Result = TypeVar("Result")


@contextmanager
def watched(folder: Path | None, *, most_bytes: int = 16 << 20, most_seconds: float = 5) -> Iterator[None]:
    """Nothing is run, imported or connected to; nothing outside `folder` is opened; little time and memory goes.

    Args:
        folder: a file, for that file alone; None: no file is opened at all.
        most_bytes: of memory that Python takes.
        most_seconds: of the processor's.
    """
    tracemalloc.start()
    start = time.process_time()
    try:
        with audit.listening() as seen:
            yield
    finally:
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    ran = [event for event in seen if event[0] != "open"]
    assert ran == []
    opened = [str(path) for event, path, _ in seen if event == "open" and isinstance(path, str)]
    outside = [p for p in opened if p.startswith("/") and not (folder and Path(p).is_relative_to(folder))]
    assert outside == []
    assert peak < most_bytes, f"{peak:,} bytes"
    assert seconds < most_seconds, f"{seconds:.1f} s"


def read_all(path: Path) -> None:
    """Open it and read every tensor and value."""
    with safepoint.open(path) as tensors:
        for tensor in tensors.values():
            tensor.numpy()
        assert tensors.plain is not None


def refused(path: Path, error: type[Exception] | tuple[type[Exception], ...], match: str = r"\S") -> None:
    """Reading `path` raises `error`, twice: the first time imports the modules, the second is watched."""
    folder = path if path.is_dir() else path.parent
    with pytest.raises(error, match=match):
        read_all(path)
    with watched(folder), pytest.raises(error, match=match):
        read_all(path)


def loads_safely(place: Path, load: Callable[[], Result]) -> Result:
    """What `load` gives: nothing forbidden (`tests/audit.py`) happens in any thread, nothing outside `place` is opened.

    The first time imports modules and lets frameworks build what they keep; the second is watched.
    """
    load()
    with audit.listening() as seen:
        result = load()
    done = [event for event in seen if event[2]]
    assert done == [], done
    opened = [Path(os.fsdecode(path)) for event, path, _ in seen if event == "open" and isinstance(path, str | bytes)]
    inside = [path for path in opened if path.is_relative_to(place) or _is_of_a_folder(path)]
    strange = [path for path in opened if path not in inside and not audit.is_machine(path)]
    assert strange == [], strange
    assert inside, "nothing was loaded, or the hook sees nothing"
    return result


def _is_of_a_folder(path: Path) -> bool:
    """Whether it was opened by a descriptor of its folder, of which the hook is not told."""
    return len(path.parts) <= 1 and not (path.name and path.exists())
