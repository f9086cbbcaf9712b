"""The collector of cycles is held off in a save and a restore, and never for longer."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import safepoint
from safepoint.api.collector import no_collection
from safepoint.errors import NotFoundError


@pytest.fixture(params=[True, False], ids=["on", "off"])
def collecting(request):
    """The collector as a program has it."""
    if not request.param:
        gc.disable()
    yield request.param
    gc.enable()


def test_it_is_off_inside_and_as_it_was_afterwards(collecting):
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == collecting


def test_saves_and_restores_leave_it_as_it_was_also_when_they_fail(tmp_path, collecting):
    seen = []
    checkpoint = safepoint.Checkpoint(state={"w": np.zeros(10)})
    checkpoint.save(tmp_path / "run", progress=lambda *_: seen.append(gc.isenabled()))
    assert seen
    assert not any(seen)
    assert gc.isenabled() == collecting
    checkpoint.restore(tmp_path / "run")
    with pytest.raises(NotFoundError):
        checkpoint.restore(tmp_path / "nothing")
    with safepoint.CheckpointManager(checkpoint, tmp_path / "managed") as manager:
        manager.save()
        assert gc.isenabled() == collecting  # also while it is written
    assert gc.isenabled() == collecting
