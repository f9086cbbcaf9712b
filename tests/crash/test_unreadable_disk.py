"""A disk that cannot give bytes back (EIO) is damage like any other: named, and passed over by `resume()`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import safepoint


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make one file unreadable."""

    def break_file(path: Path) -> None:
        real, inode = os.preadv, path.stat().st_ino

        def preadv(descriptor: int, buffers: Any, offset: int, *flags: Any) -> int:
            if os.fstat(descriptor).st_ino == inode:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, buffers, offset, *flags)

        monkeypatch.setattr(os, "preadv", preadv)

    return break_file


def test_resume_passes_over_a_pack_that_cannot_be_read(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    state = {"w": np.zeros(1000)}
    with safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run") as manager:
        for step in range(3):
            state["w"] += 1
            manager.save(step)
    lose(max((tmp_path / "run" / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns))
    with pytest.raises(safepoint.CorruptionError, match="state/w"):
        safepoint.Checkpoint(state=state).restore(tmp_path / "run")
    state["w"][:] = 0  # live objects that held what was lost would heal it
    assert safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run").resume() == 2
    assert (state["w"] == 2).all()
