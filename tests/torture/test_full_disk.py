"""A disk that really is full: told, nothing acknowledged lost, nothing left behind, and room makes all well again."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.crash.scenario import check_all, tree_of
from tests.torture.life import Known, acknowledge, check_survival, collect, compact, prune, sign, tag
from tests.torture.machine import give_up, may_mount
from tests.torture.report import Torture

import safepoint
from safepoint.api.importing import carry_out, plan
from safepoint.errors import StoreError
from safepoint.repository import Repository, read_model_file, write_model_file
from safepoint.store import LocalStore
from safepoint.store.files import TEMPORARY

KIB = 1 << 10
FULL = ["save", "save in background", "tag", "sign", "prune", "collect", "compact", "save a model file"]
DELETING = {"collect": collect, "compact": compact}


def content(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    frozen = np.arange(6000, dtype=np.float32)  # what compaction moves
    return {
        "state/frozen": frozen,
        "state/w": rng.integers(0, 255, 150 * KIB, dtype=np.uint8),
        "state/n": np.full(3, step),
    }


@contextlib.contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[Path]:
    """A file system in memory of that size."""
    if not may_mount():
        give_up("mounting takes CAP_SYS_ADMIN", expected=False)
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        give_up(f"cannot mount tmpfs: {mounted.stderr.decode().strip()}", expected=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def used_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def save(place: Path, known: Known, step: int, *, background: bool) -> None:
    known.attempted = content(step)
    state = {name.removeprefix("state/"): value for name, value in content(step).items()}
    checkpoint = safepoint.Checkpoint(state=state)
    if not background:
        acknowledge(known, checkpoint.save(place, step=step))
        return
    with contextlib.closing(safepoint.CheckpointManager(checkpoint, place, keep=[], random=False)) as manager:
        if manager.resume():
            state.update({name.removeprefix("state/"): value for name, value in content(step).items()})
        handle = manager.save(step, force=True)
        assert handle is not None
        acknowledge(known, handle.result())


def fill(place: Path, known: Known, *, background: bool) -> None:
    """Save until there is no room."""
    for step in itertools.count():
        before = used_bytes(place.parent)
        try:
            save(place, known, step, background=background)
        except StoreError as error:
            refused = error
            break
    assert refused.errno == errno.ENOSPC, refused
    assert "bytes are free" in str(refused)
    known.attempted = None
    assert list(place.rglob(f"{TEMPORARY}*")) == []
    assert used_bytes(place.parent) - before <= 32 * KIB


def fill_to_the_brim(place: Path) -> None:
    """Not even a page is left."""
    with (place / "brim").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_costs_only_what_did_not_fit(what: str, torture: Torture, disk: Path) -> None:
    budget = torture.budget(4, 64)
    for number in range(budget):
        size = torture.rng.randrange(120, 1400) * KIB
        with small_disk(disk / f"disk-{number}", size) as place:
            root, known = place / "run", Known()
            fill(root, known, background=what == "save in background")
            fill_to_the_brim(place)
            repository = Repository(root)
            if known.content and what in (
                steps := {"tag": tag("latest", "t"), "sign": sign, "prune": prune(1), **DELETING}
            ):
                step = steps[what]
                with contextlib.suppress(StoreError):
                    if what in DELETING:  # what was pruned before it was full gives room
                        (place / "brim").unlink()
                        prune(1)(repository, known)
                        fill_to_the_brim(place)
                    step(repository, known)
            if what == "save a model file":
                model_file_on_a_full_disk(place)
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            check_survival(LocalStore(root), known)
    torture.record("Full disk", budget, f"{what}: tmpfs of as many sizes")


def model_file_on_a_full_disk(place: Path) -> None:
    (place / "brim").unlink()
    path = place / "model"
    small = tree_of({"w": np.arange(3)})
    try:
        write_model_file(path, small, structure={}, format="test")
    except StoreError:
        assert not path.exists()
        return
    with pytest.raises(StoreError):
        write_model_file(path, tree_of({"w": np.zeros(4 << 20, np.uint8)}), structure={}, format="test")
    assert read_model_file(path).load().leaves["w"].numpy().tolist() == [0, 1, 2]
    assert [entry.name for entry in place.iterdir() if entry.name.startswith(TEMPORARY)] == []


def test_an_import_on_a_full_disk_keeps_what_fitted(torture: Torture, disk: Path) -> None:
    """What was imported is whole; with room, the same command goes on."""
    checkpoints = 10
    for step in range(checkpoints):
        write_model_file(disk / "old" / f"step-{step}.safetensors", tree_of(content(step)), structure={}, format="test")
    budget = torture.budget(4, 64)
    for number in range(budget):
        size = torture.rng.randrange(120, 1300) * KIB
        with small_disk(disk / f"disk-{number}", size) as place:
            root, known = place / "run", Known()
            with pytest.raises(StoreError) as refused:
                carry_out(plan([str(disk / "old")], str(root)))
            assert refused.value.errno == errno.ENOSPC
            assert list(root.rglob(f"{TEMPORARY}*")) == []
            there = Repository(root).snapshots if Repository(root).exists else []
            assert [snapshot.step for snapshot in there] == list(range(len(there)))
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            carry_out(plan([str(disk / "old")], str(root)))
            for snapshot in Repository(root).snapshots:
                known.content[snapshot.number] = {f"model/{name}": x for name, x in content(snapshot.step).items()}
            assert len(known.content) == checkpoints
            check_all(Repository(root), Repository(root).history()[0], known)
    torture.record("Full disk", budget, "import: tmpfs of as many sizes")


def test_a_program_that_truncates_first_is_caught(torture: Torture, disk: Path) -> None:
    """As most programs save: the old file is gone when the new one does not fit."""
    caught = 0
    for number in range(4):
        with small_disk(disk / f"disk-{number}", 200 * KIB) as place:
            path = place / "model"
            path.write_bytes(bytes(100 * KIB))
            with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
                while file.write(b"new " * KIB):
                    pass
            caught += path.read_bytes()[: 100 * KIB] != bytes(100 * KIB) or path.stat().st_size != 100 * KIB
    assert caught == 4
    torture.record("Full disk, broken on purpose", 4, "opened for writing in place", controls=f"{caught} times")
