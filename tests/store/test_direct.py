"""Reading past the page cache: the same bytes from any offset, and through the page cache where that is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from safepoint.errors import CorruptionError, StoreError
from safepoint.store import LocalStore, direct, reader_past_cache
from safepoint.store.memory import MemoryStore

SIZE = 50_001
CONTENT = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
RANGES = [(0, SIZE), (0, 1), (1, 4095), (4095, 2), (4096, 4096), (12_345, 30_000), (SIZE - 1, 1), (SIZE, 0)]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "run")
    store.create("packs/a", CONTENT.tobytes())
    return store


@pytest.fixture(params=["large buffer", "small buffer", "no direct I/O", "refused", "refused half-way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    preadv = os.preadv
    calls = []

    def refusing(*arguments: object) -> int:
        calls.append(1)
        if len(calls) == (1 if request.param == "refused" else 2):
            raise OSError(errno.EINVAL, "no direct I/O here")
        return preadv(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(direct, "_own", type("Own", (), {})())
    if request.param != "large buffer":
        monkeypatch.setattr(direct, "_BUFFER_BYTES", 8192)
    if request.param == "no direct I/O":
        monkeypatch.setattr(direct, "_DIRECT", 0)
    if request.param.startswith("refused"):
        monkeypatch.setattr(os, "preadv", refusing)
    return str(request.param)


@pytest.mark.parametrize("start, length", RANGES)
def test_the_same_bytes(store: LocalStore, way: str, start: int, length: int) -> None:
    found = np.zeros(length, np.uint8)
    reader_past_cache(store)("packs/a", start, found)
    assert np.array_equal(found, CONTENT[start : start + length])


def test_a_file_that_ends_before(store: LocalStore, way: str) -> None:
    with pytest.raises(CorruptionError, match="ends early"):
        store.read_past_cache("packs/a", SIZE - 10, np.zeros(11, np.uint8))


@pytest.mark.parametrize("code, kind", [(errno.EIO, CorruptionError), (errno.EACCES, StoreError)])
def test_a_disk_that_refuses(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(kind):
        store.read_past_cache("packs/a", 0, np.zeros(10, np.uint8))


def test_other_stores_read_as_they_do() -> None:
    store = MemoryStore()
    assert reader_past_cache(store) == store.read_into


def test_a_large_restore_in_place_goes_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safepoint
    from safepoint.api import restore
    from safepoint.repository import Manifest

    state = {"a": np.arange(500_000.0), "b": np.arange(7, dtype=np.int8)}
    safepoint.Checkpoint(state=state).save(tmp_path / "run")
    used: list[str] = []
    read: Callable[..., None] = LocalStore.read_past_cache
    monkeypatch.setattr(LocalStore, "read_past_cache", lambda s, name, *rest: (used.append(name), read(s, name, *rest)))
    for spare, waits, expected in ((8_000_014, True, False), (8_000_013, False, False), (8_000_013, True, True)):
        monkeypatch.setattr(restore, "spare_memory", lambda spare=spare: spare)
        monkeypatch.setattr(Manifest, "waits", lambda *_, waits=waits: waits)
        live = {"a": np.zeros(500_000), "b": np.zeros(7, np.int8)}
        safepoint.Checkpoint(state=live).restore(tmp_path / "run", in_place=True)
        assert all(np.array_equal(live[name], state[name]) for name in state)
        assert bool(used) == expected
