"""A store is tried out where a repository begins: what it promises, on the real place, before anything relies on it.

Invariant: what a store cannot do without is refused here, with a message; nothing is left behind.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np

from safepoint.errors import ConflictError, CorruptionError, ExistsError, NotFoundError, StoreError
from safepoint.repository.layout import FORMAT_FILE, manifest_file
from safepoint.store import Store


def probe(store: Store, data: bytes) -> None:
    """Try a store that has just created `safepoint.json` with `data`: create-only, whole, by ranges, listed, locked.

    Raises:
        StoreError: it does not keep a promise that commits rest on; says which. Not a repository any more.
    """
    try:
        _check_created(store, data)
        _check_locked(store)
        with store.lock(exclusive=False):  # or a collector would delete what is looked for
            _check_listed(store)
    except StoreError as error:
        if error.errno is None:  # refused by us; what the system refuses now may go well the next time
            store.delete(FORMAT_FILE)
        raise


def _check_created(store: Store, data: bytes) -> None:
    try:
        store.create(FORMAT_FILE, data)  # the same bytes: a store that overwrites does no harm
    except ExistsError:
        pass
    else:
        _refuse(store, "it overwrites: two writers could take the same number, and one save be lost")
    if store.read(FORMAT_FILE) != data or store.size(FORMAT_FILE) != len(data):
        _refuse(store, "it does not give back what was written")
    part = np.zeros(len(data) - 2, np.uint8)
    store.read_into(FORMAT_FILE, 1, part)
    if part.tobytes() != data[1:-1]:
        _refuse(store, "ranges of a file are not what was written")
    try:
        store.read_into(FORMAT_FILE, 1, np.zeros(len(data), np.uint8))
    except CorruptionError:
        return
    _refuse(store, "reading past the end of a file succeeds")


def _check_listed(store: Store) -> None:
    # A manifest that nothing names: if this process dies now, the collector deletes it. Not `secrets`: ids are drawn
    # from there, and tests pin them.
    name = manifest_file(os.urandom(12).hex())
    file = name.partition("/")[2]
    store.create(name, b"{}")
    listed = store.list("manifests")
    store.delete(name)
    if file not in listed or listed != sorted(listed):
        _refuse(store, "a file is not listed, or not in order, as soon as it was created")
    if file in store.list("manifests"):
        _refuse(store, "a file is listed after it was deleted")
    try:
        store.read(name)
    except NotFoundError:
        return
    _refuse(store, "a file can be read after it was deleted")


def _check_locked(store: Store) -> None:
    try:
        with store.lock(exclusive=True, wait=False), store.lock(exclusive=False, wait=False):
            pass
    except ConflictError:  # ours with ourselves, or another process's: locks work
        return
    except StoreError as error:
        if error.errno is not None:  # no locks at all: saves go on, and no collection will ever delete anything
            return
        raise
    _refuse(store, "its locks do not exclude each other: a collection could delete what a save refers to")


def _refuse(store: Store, why: str) -> NoReturn:
    raise StoreError(
        f"{store.location} cannot hold a repository: {why}",
        path=store.location,
        expected="a store that creates names once, reads ranges, lists and locks",
        hint="choose a local disk, or another file system",
    )
