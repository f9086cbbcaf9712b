"""What any store must do, as tests: subclass a suite, say how yours is opened, and run pytest on it.

For example::

    class TestMyStore(SharedStoreSuite):
        def open_store(self, place):
            return MyStore(place)
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from safepoint.errors import (
    ConflictError,
    CorruptionError,
    ExistsError,
    NotFoundError,
    SafepointError,
    StoreError,
    UnsupportedError,
)
from safepoint.store import Sink, Store, aligned_buffer
from safepoint.store.protocol import ALIGNMENT

_BAD_NAMES = (
    "", ".", "..", "/", "/etc/passwd", "../a", "packs/../a", "packs/..", "packs/a..b", "packs//a", "packs/", "/packs/a",
    "a/b/c", ".hidden", "packs/.hidden", ".tmp-0", "packs\\a", "pa cks/a", "packs/a b", "packs/a\0", "packs/a\n",
    "packs/\u00e4", "~/a", "C:a", "packs/" + 300 * "a",
)  # fmt: skip


class StoreSuite:
    """The contract of `safepoint.store.Store`."""

    def open_store(self, place: Path) -> Store:
        """A store at `place`, which is the test's own; opening it again must show the same files."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "place"

    @pytest.fixture
    def store(self, place: Path) -> Store:
        return self.open_store(place)

    # -- files -----------------------------------------------------------------------------------------------------

    def test_a_created_file_is_read_back(self, store: Store, place: Path) -> None:
        store.create("packs/a.bin", b"content")
        store.create("top.json", b"")
        assert store.read("packs/a.bin") == b"content"
        assert self.open_store(place).read("packs/a.bin") == b"content"
        assert store.read("top.json") == b""
        assert (store.size("packs/a.bin"), store.size("top.json")) == (7, 0)

    def test_an_empty_place_exists_only_after_the_first_file(self, store: Store) -> None:
        assert not store.exists()
        store.create("a", b"1")
        assert store.exists()

    def test_create_refuses_a_taken_name(self, store: Store) -> None:
        store.create("packs/a", b"first")
        with pytest.raises(ExistsError):
            store.create("packs/a", b"second")
        assert store.read("packs/a") == b"first"

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        for missing in ("packs/a", "a"):
            with pytest.raises(NotFoundError):
                store.read(missing)
            with pytest.raises(NotFoundError):
                store.size(missing)
            with pytest.raises(NotFoundError):
                store.read_into(missing, 0, np.zeros(1, np.uint8))

    def test_a_file_longer_than_expected_is_not_read(self, store: Store) -> None:
        store.create("a", b"12345")
        assert store.read("a", at_most=5) == b"12345"
        with pytest.raises(CorruptionError):
            store.read("a", at_most=4)

    def test_ranges_are_read_into_their_destination(self, store: Store) -> None:
        content = bytes(range(256)) * 64
        store.create("a", content)
        for start, length in ((0, 0), (0, 1), (5, 1000), (4096, 4096), (len(content) - 3, 3), (len(content), 0)):
            target = np.full(length + 2, 7, np.uint8)
            store.read_into("a", start, target[1:-1])
            assert target.tobytes() == b"\x07" + content[start : start + length] + b"\x07"

    def test_a_file_that_ends_early_is_damaged(self, store: Store) -> None:
        store.create("a", b"12345")
        for start, length in ((0, 6), (4, 2), (5, 1), (1000, 1)):
            with pytest.raises(CorruptionError) as caught:
                store.read_into("a", start, np.zeros(length, np.uint8))
            assert caught.value.file == "a"

    def test_a_list_is_sorted_and_has_no_folders(self, store: Store) -> None:
        assert store.list("packs") == []
        for name in ("packs/b", "packs/a", "manifests/c", "top"):
            store.create(name, b"")
        assert store.list("packs") == ["a", "b"]
        assert store.list("manifests") == ["c"]
        assert store.list("marks") == []

    def test_a_deleted_file_is_gone_and_deleting_again_is_harmless(self, store: Store) -> None:
        store.create("packs/a", b"1")
        store.delete("packs/a")
        store.delete("packs/a")
        store.delete("never/there")
        assert store.list("packs") == []
        with pytest.raises(NotFoundError):
            store.read("packs/a")

    @pytest.mark.parametrize("name", _BAD_NAMES)
    def test_a_name_that_could_lead_elsewhere_is_refused(self, store: Store, name: str) -> None:
        operations: list[Callable[[], object]] = [
            lambda: store.create(name, b""), lambda: store.sink(name), lambda: store.read(name),
            lambda: store.size(name), lambda: store.delete(name), lambda: store.list(name),
            lambda: store.read_into(name, 0, np.zeros(1, np.uint8)),
        ]  # fmt: skip
        for operation in operations:
            with pytest.raises(UnsupportedError):
                operation()

    # -- sinks -----------------------------------------------------------------------------------------------------

    def test_a_sink_is_invisible_until_it_is_committed(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.write(0, _page(1))
        assert store.list("packs") == []
        with pytest.raises(NotFoundError):
            store.read("packs/a")
        sink.commit(10)
        assert store.list("packs") == ["a"]
        assert store.read("packs/a") == b"\x01" * 10

    def test_an_aborted_sink_leaves_nothing(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.write(0, _page(1))
        sink.abort()
        sink.abort()
        assert store.list("packs") == []
        store.create("packs/a", b"other")
        assert store.read("packs/a") == b"other"

    def test_abort_after_commit_is_harmless(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.write(0, _page(1))
        sink.commit(ALIGNMENT)
        sink.abort()
        assert store.size("packs/a") == ALIGNMENT

    def test_a_finished_sink_takes_nothing_more(self, store: Store) -> None:
        aborted, committed = store.sink("packs/a"), store.sink("packs/b")
        aborted.abort()
        committed.commit(0)
        for sink in (aborted, committed):
            with pytest.raises(StoreError):
                sink.write(0, _page(1))
            with pytest.raises(StoreError):
                sink.commit(1)
        assert store.list("packs") == ["b"]
        assert store.read("packs/b") == b""

    def test_a_sink_refuses_a_name_taken_meanwhile(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.write(0, _page(1))
        store.create("packs/a", b"first")
        with pytest.raises(ExistsError):
            sink.commit(5)
        sink.abort()
        assert store.read("packs/a") == b"first"
        assert store.list("packs") == ["a"]

    def test_pages_may_come_in_any_order_and_from_several_threads(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.reserve(64 * ALIGNMENT)
        sink.reserve(10)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: sink.write(n * ALIGNMENT, _page(n)), reversed(range(64))))
        sink.commit(64 * ALIGNMENT)
        expected = b"".join(bytes([n]) * ALIGNMENT for n in range(64))
        assert store.read("packs/a") == expected

    def test_the_last_bytes_may_be_of_any_length(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.write(0, _page(1))
        sink.write(ALIGNMENT, np.full(5, 2, np.uint8))
        sink.commit(ALIGNMENT + 5)
        assert store.read("packs/a") == b"\x01" * ALIGNMENT + b"\x02" * 5

    def test_commit_cuts_to_size_and_what_was_not_written_is_zero(self, store: Store) -> None:
        sink = store.sink("packs/a")
        sink.reserve(3 * ALIGNMENT)
        sink.write(ALIGNMENT, _page(1))
        sink.commit(2 * ALIGNMENT - 1)
        assert store.read("packs/a") == bytes(ALIGNMENT) + b"\x01" * (ALIGNMENT - 1)

    # -- races -----------------------------------------------------------------------------------------------------

    def test_of_racing_threads_one_creates(self, place: Path) -> None:
        stores = [self.open_store(place) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for turn in range(10):
                name, start = f"snapshots/{turn}", threading.Barrier(8)

                def attempt(who: int, name: str = name, start: threading.Barrier = start) -> int | None:
                    start.wait()
                    return who if _creates(stores[who], name, bytes([who]) * 100) else None

                winners = [who for who in pool.map(attempt, range(8)) if who is not None]
                assert len(winners) == 1
                assert stores[0].read(name) == bytes(winners) * 100

    # -- locks -----------------------------------------------------------------------------------------------------

    def test_shared_locks_go_together_and_exclude_the_exclusive_one(self, store: Store, place: Path) -> None:
        other = self.open_store(place)
        store.create("a", b"")
        with store.lock(exclusive=False), other.lock(exclusive=False, wait=False), pytest.raises(ConflictError):
            other.lock(exclusive=True, wait=False).__enter__()
        with other.lock(exclusive=True, wait=False):
            pass

    def test_the_exclusive_lock_excludes_all(self, store: Store, place: Path) -> None:
        other = self.open_store(place)
        store.create("a", b"")
        with store.lock(exclusive=True):
            for exclusive in (False, True):
                with pytest.raises(ConflictError):
                    other.lock(exclusive=exclusive, wait=False).__enter__()
        with other.lock(exclusive=True, wait=False):
            pass

    def test_a_lock_ends_with_an_exception(self, store: Store) -> None:
        store.create("a", b"")
        for exclusive in (True, False):
            with pytest.raises(SafepointError), store.lock(exclusive=exclusive):
                raise SafepointError("out")
        with store.lock(exclusive=True, wait=False):
            pass

    def test_a_lock_is_waited_for(self, store: Store, place: Path) -> None:
        other = self.open_store(place)
        store.create("a", b"")
        entered = threading.Event()

        def wait() -> None:
            with other.lock(exclusive=False):
                entered.set()

        thread = threading.Thread(target=wait)
        with store.lock(exclusive=True):
            thread.start()
            assert not entered.wait(0.05)
        thread.join(10)
        assert entered.is_set()


class SharedStoreSuite(StoreSuite):
    """The same, and more, for a store whose files and locks other processes on this machine see."""

    def test_of_racing_processes_one_creates(self, store: Store, place: Path) -> None:
        store.create("top", b"")

        def race(who: int) -> int:
            mine = self.open_store(place)
            wins = [turn for turn in range(40) if _creates(mine, f"snapshots/{turn}", bytes([who]) * 100)]
            mine.create(f"marks/{who}", bytes(wins))
            return 0

        children = [_fork(lambda who=who: race(who)) for who in range(4)]  # type: ignore[misc]
        assert [_wait(child) for child in children] == [0] * 4
        for who in range(4):
            assert all(store.read(f"snapshots/{turn}") == bytes([who]) * 100 for turn in store.read(f"marks/{who}"))
        assert sorted(b"".join(store.read(f"marks/{who}") for who in range(4))) == list(range(40))

    def test_a_lock_dies_with_its_process(self, store: Store, place: Path) -> None:
        store.create("a", b"")

        def hold() -> int:
            with self.open_store(place).lock(exclusive=False):
                store.create("held", b"")
                time.sleep(60)
            return 0

        child = _fork(hold)
        _until(lambda: _has(store, "held"))
        with pytest.raises(ConflictError):
            store.lock(exclusive=True, wait=False).__enter__()
        os.kill(child, signal.SIGKILL)
        _wait(child)
        with store.lock(exclusive=True, wait=False):
            pass

    def test_a_process_forked_meanwhile_does_not_keep_the_lock(self, store: Store, place: Path) -> None:
        store.create("a", b"")
        with store.lock(exclusive=False):
            child = _fork(lambda: _sleep(60))  # a data loader's worker
        try:
            with self.open_store(place).lock(exclusive=True, wait=False):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
            _wait(child)

    def test_what_a_killed_writer_left_is_cleaned(self, store: Store, place: Path) -> None:
        store.create("marks/first", b"")

        def die() -> int:
            sink: Sink = self.open_store(place).sink("packs/a")
            sink.write(0, _page(1))
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        _wait(_fork(die))
        assert store.list("packs") == []
        with store.lock(exclusive=True):
            assert store.clean() >= 0
            assert store.clean() == 0
        store.create("packs/a", b"new")
        assert store.read("marks/first") == b""


def _page(value: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    page: np.ndarray[tuple[int], np.dtype[np.uint8]] = aligned_buffer(ALIGNMENT)
    page[:] = value
    return page


def _creates(store: Store, name: str, data: bytes) -> bool:
    try:
        store.create(name, data)
    except ExistsError:
        return False
    return True


def _has(store: Store, name: str) -> bool:
    try:
        store.size(name)
    except NotFoundError:
        return False
    return True


def _sleep(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _fork(work: Callable[[], int]) -> int:
    """Run `work` in a child process; returns its id. A fork, because stores of tests need not be importable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of the test runner only wait
        child = os.fork()
    if child:
        return child
    try:
        os._exit(work())
    finally:
        os._exit(1)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
