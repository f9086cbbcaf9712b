"""Deciding about a snapshot after its commit: the next mark.

Invariant: a decision is made on the newest mark, or not at all; who loses the number reads again and decides again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime

from safepoint.errors import ExistsError, StoreError, UnsupportedError
from safepoint.repository.documents import Documents
from safepoint.repository.features import check_features
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import mark_file
from safepoint.repository.schema import FORMAT_VERSION, MarkDocument, encode_sealed
from safepoint.repository.views import format_time, mark_of, view

Change = Callable[[Snapshot], Snapshot | None]
"""A snapshot as it is → as it shall be, or None to leave it as it is. May raise."""


def decide(
    documents: Documents, number: int, change: Change, *, clock: Callable[[], datetime], known: int | None = None
) -> Snapshot | None:
    """Write the next mark of a snapshot; returns what it is now, or None if the change was given up.

    Args:
        documents: of the repository.
        number: of the snapshot.
        change: what is decided.
        clock: current aware UTC time.
        known: its newest mark (-1 for none), for who has just looked; if that is old news, its successor's name is
            taken. A long history takes a while to list.

    Raises:
        StoreError: it could not be written.
        UnsupportedError: this version may only read here.
    """
    check_features(documents.store)
    with documents.store.lock(exclusive=False):  # a collector must not sweep a mark that is being written
        while True:
            k = documents.newest_marks().get(number, -1) if known is None else known
            known = None
            new = change(documents.view(number, k))
            if new is None:
                return None
            document = mark_of(new, documents.snapshot(number), k=k + 1, time=clock())
            try:
                documents.store.create(mark_file(number, k + 1), encode_sealed(document))
            except ExistsError:
                continue
            return view(documents.snapshot(number), document)


def decide_if_possible(documents: Documents, number: int, change: Change, *, clock: Callable[[], datetime]) -> None:
    """The same, where a place that cannot be written, or only by newer versions, is no reason to fail."""
    with contextlib.suppress(StoreError, UnsupportedError):
        decide(documents, number, change, clock=clock)


def abandon(documents: Documents, number: int, *, clock: Callable[[], datetime]) -> None:
    """Mark a snapshot as pruned whose own documents cannot be read, so that collection can go on without it."""
    check_features(documents.store)
    with documents.store.lock(exclusive=False):
        while True:
            k = documents.newest_marks().get(number, -1) + 1
            document = MarkDocument(FORMAT_VERSION, documents.id, number, k, format_time(clock()), tags=[], pruned=True)
            try:
                documents.store.create(mark_file(number, k), encode_sealed(document))
            except ExistsError:
                continue
            return
