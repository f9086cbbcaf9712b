"""What a reader does to the process while it reads a hostile file, seen by an audit hook; its time and memory."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import safepoint

FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.",
    "marshal.",
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "ctypes.",
)
_seen: list[tuple[str, Any]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and (event.startswith(FORBIDDEN) or event == "open"):
        _seen.append((event, arguments[0] if arguments else None))


sys.addaudithook(_hook)


@contextmanager
def watched(folder: Path, *, most_bytes: int = 16 << 20, most_seconds: float = 5) -> Iterator[None]:
    """Nothing is run, imported or connected to; nothing outside `folder` is opened; little time and memory goes."""
    global _seen  # noqa: PLW0603 — a hook cannot be taken away again
    tracemalloc.start()
    seen: list[tuple[str, Any]] = []
    start = time.process_time()
    _seen = seen
    try:
        yield
    finally:
        _seen = None
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    ran = [event for event in seen if event[0] != "open"]
    assert ran == []
    opened = [str(path) for event, path in seen if event == "open" and isinstance(path, str)]
    outside = [path for path in opened if path.startswith("/") and not Path(path).is_relative_to(folder)]
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
