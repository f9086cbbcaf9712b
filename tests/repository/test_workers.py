"""Threads for a stretch of work, and none where there is little of it."""

from __future__ import annotations

import threading
import time

import pytest

from safepoint.repository.workers import Workers

LITTLE, MUCH = 1000, 100 << 20


def here() -> threading.Thread:
    return threading.current_thread()


@pytest.mark.parametrize("num_bytes", [None, MUCH])
def test_work_is_done_in_a_few_threads_that_end_with_it(num_bytes: int | None) -> None:
    with Workers(2, "some", num_bytes=num_bytes) as pool:
        threads = {*(pool.submit(here).result() for _ in range(9)), *pool.map(lambda _: here(), range(9))}
    assert {thread.name for thread in threads} <= {"some-0", "some-1"}
    assert not any(thread.is_alive() for thread in threads)


def test_a_little_work_is_done_where_it_is_asked_for() -> None:
    with Workers(2, "some", num_bytes=LITTLE) as pool:
        assert pool.submit(here).result() is here()
        assert list(pool.map(lambda _: here(), range(9))) == [here()] * 9


@pytest.mark.parametrize("num_bytes", [LITTLE, MUCH])
def test_an_error_belongs_to_its_result_and_the_rest_is_not_begun(num_bytes: int) -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number > 3:
            time.sleep(0.001)
        return 1 // (3 - number)

    with Workers(1, "some", num_bytes=num_bytes) as pool:
        future = pool.submit(work, 3)
        with pytest.raises(ZeroDivisionError):
            future.result()
        with pytest.raises(ZeroDivisionError):
            list(pool.map(work, range(10_000)))
    assert begun[:5] == [3, 0, 1, 2, 3]
    assert len(begun) < 10_000
