"""Live objects: a background save holds the bytes of the call; a restore that raises has changed nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.torture.live_objects import MAKERS, Bytes, Live
from tests.torture.report import Torture

import safepoint
from safepoint.api.staging import Staged, Staging
from safepoint.errors import CorruptionError, MismatchError, SafepointError, StoreError
from safepoint.repository import Repository, Snapshot
from safepoint.tree import Tensor

COPY = Staging.copy


def saved_bytes(repository: Repository, snapshot: Snapshot) -> Bytes:
    manifest = repository.manifest(snapshot)
    leaves = manifest.load(manifest.tree.leaves).leaves
    return {n: x.read().tobytes() if isinstance(x, Tensor) else repr(x).encode() for n, x in leaves.items()}


def save_and_change(live: Live, place: Path, rounds: int) -> int:
    """Save in the background, change everything at once; how many saves hold something else than at their call."""
    torn = 0
    with safepoint.CheckpointManager(live.checkpoint, place, keep=[safepoint.Latest(1)], random=False) as manager:
        for step in range(rounds):
            live.train(step + 1)
            at_the_call = live.content()
            handle = manager.save(step, force=True, **live.values())
            live.train(1000)  # at once: nobody waits for the disk
            assert handle is not None
            torn += saved_bytes(manager.repository, handle.result()) != at_the_call
    return torn


@pytest.mark.parametrize("framework", MAKERS)
def test_a_background_save_holds_the_bytes_of_its_call(framework: str, torture: Torture, disk: Path) -> None:
    rounds = torture.budget(20, 1_000)
    assert save_and_change(MAKERS[framework](), disk / "run", rounds) == 0, torture.replay
    torture.record("Changed right after a background save", rounds, f"{framework}: bytes on disk are those at the call")


def copy_nothing(self: Staging, tree: Any, **_: Any) -> Staged:
    """Staging as a program that hands live memory to its background thread."""
    copied = COPY(self, tree.map_tensors(lambda name, tensor: tensor))
    return Staged(tree, copied.done, copied.go_on)


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow", "keras"])
def test_a_save_that_copies_nothing_is_caught(
    framework: str, torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Staging, "copy", copy_nothing)
    tried = torn = 0
    while not torn and tried < 200:
        torn = save_and_change(MAKERS[framework](), disk / f"run-{tried}", 10)
        tried += 10
    assert torn
    torture.record(
        "Changed right after a background save, broken on purpose", tried, framework, controls=f"{torn} torn saves"
    )


def fail_to_restore(live: Live, place: Path, torture: Torture, **options: Any) -> bool:
    """Damage what was saved somewhere, restore, and put it back; whether live objects changed though it raised."""
    packs = [path for path in (place / "packs").iterdir() if path.suffix == ".safetensors"]
    path = torture.rng.choice(packs)
    whole = path.read_bytes()
    kind = torture.rng.choice(["flip", "cut", "gone", "refused"])
    changed = bytearray(whole)
    if kind == "flip":
        changed[torture.rng.randrange(4096, len(whole))] ^= 1 << torture.rng.randrange(8)
    elif kind == "cut":
        del changed[torture.rng.randrange(4096, len(whole)) :]
    before = live.content()
    path.unlink()
    if kind == "refused":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(changed)
    raised = False
    try:
        live.checkpoint.restore(place, **options)
    except (CorruptionError, StoreError):
        raised = True
    finally:
        with contextlib.suppress(OSError):
            path.unlink() if path.is_file() else path.rmdir()
        path.write_bytes(whole)
    return raised and live.content() != before


@pytest.mark.parametrize("framework", MAKERS)
def test_a_restore_that_raises_has_changed_nothing(framework: str, torture: Torture, disk: Path) -> None:
    rounds = torture.budget(12, 300)
    live = MAKERS[framework]()
    live.train(3)
    live.checkpoint.save(disk / "run", **live.values())
    saved = live.content()
    live.train(5)
    for _ in range(rounds):
        assert not fail_to_restore(live, disk / "run", torture), torture.replay
    live.checkpoint.restore(disk / "run")
    if not live.values():
        assert live.content() == saved
    torture.record("Failed restores", rounds, f"{framework}: hash of the live objects before equals after")


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_mismatch_has_changed_nothing(framework: str, torture: Torture, disk: Path) -> None:
    live = MAKERS[framework]()
    live.checkpoint.save(disk / "run")
    live.train(5)
    before = live.content()
    for options in ({"at": "id:7"}, {"select": ["nothing*"]}, {"rename": {"w": "v", "weight": "v"}}):
        with pytest.raises((MismatchError, SafepointError)):
            live.checkpoint.restore(disk / "run", **options)
        assert live.content() == before


def test_a_restore_that_reads_into_live_memory_is_caught(torture: Torture, disk: Path) -> None:
    """`in_place=True` gives this promise up, and says so: the harness must see it."""
    live = MAKERS["numpy"]()
    live.train(3)
    live.checkpoint.save(disk / "run")
    live.train(5)
    caught = 0
    for _ in range(20):
        with contextlib.suppress(safepoint.RestoreInterrupted):
            caught += fail_to_restore_in_place(live, disk / "run")
    assert caught
    torture.record("Failed restores, broken on purpose", 20, "in_place=True", controls=f"{caught} times changed")


def fail_to_restore_in_place(live: Live, place: Path) -> bool:
    (path,) = (place / "packs").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = live.content()
    try:
        live.checkpoint.restore(place, in_place=True)
    except SafepointError:
        return live.content() != before
    finally:
        path.write_bytes(whole)
    return False
