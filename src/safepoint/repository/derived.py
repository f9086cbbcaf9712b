"""The folder `derived/` of a repository: numbers that were worked out from blocks, so that nobody has to do it again.

Invariant: nothing depends on it. It is no part of any snapshot, may be deleted at any time, is ignored where it is
damaged, and not written where nothing can be.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import DIGEST_LENGTH, digest
from safepoint.errors import SafepointError
from safepoint.store import Store

KEY_BYTES = 32
_FOLDER = "derived"
_SUFFIX = ".numbers"
_MAGIC = b"safepoint numbers 1\n"
_MOST_FILES = 16
_MOST_BYTES = 64 << 20  # of one file, and of all that is kept


@final
class Derived:
    """Rows of numbers by key: a digest of what they were worked out from, and how.

    A file holds its magic, the BLAKE3 of what follows, and records of a key and `width` little-endian doubles.

    Args:
        store: of the repository.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, dict[bytes, NDArray[np.float64]]] = {}

    def known(self, width: int) -> Mapping[bytes, NDArray[np.float64]]:
        """Everything that is kept in rows of this width; read once."""
        if width not in self._known:
            self._known[width] = {}
            for file in self._files(width):
                self._known[width].update(self._read(file, width))
        return self._known[width]

    def add(self, rows: Mapping[bytes, NDArray[np.float64]], *, width: int) -> None:
        """Keep some more, where that is possible; many files become one."""
        if not rows:
            return
        known = self._known.setdefault(width, {})
        known.update(rows)
        kept = dict(rows)
        with contextlib.suppress(SafepointError):  # a read-only place, a full disk, a collection: no matter
            files = self._files(width)
            old = files if len(files) >= _MOST_FILES else []
            if old and len(known) * _record(width).itemsize <= _MOST_BYTES:
                kept = dict(known)
            with self._store.lock(exclusive=False, wait=False):
                self._store.create(f"{_FOLDER}/{width}-{secrets.token_hex(12)}{_SUFFIX}", _encode(kept, width))
                for file in old:
                    self._store.delete(file)

    def _files(self, width: int) -> list[str]:
        try:
            names = self._store.list(_FOLDER)
        except SafepointError:
            return []
        return [f"{_FOLDER}/{n}" for n in names if n.startswith(f"{width}-") and n.endswith(_SUFFIX)]

    def _read(self, file: str, width: int) -> dict[bytes, NDArray[np.float64]]:
        with contextlib.suppress(SafepointError):
            data = self._store.read(file, at_most=_MOST_BYTES)
            head = len(_MAGIC) + DIGEST_LENGTH
            body = data[head:]
            record = _record(width)
            if data[:head] == _MAGIC + digest(body).encode() and len(body) % record.itemsize == 0:
                found = np.frombuffer(body, record)
                return dict(zip(map(bytes, found["key"]), found["row"], strict=True))
        return {}


def _record(width: int) -> np.dtype[Any]:
    return np.dtype([("key", np.uint8, (KEY_BYTES,)), ("row", "<f8", (width,))])


def _encode(rows: Mapping[bytes, NDArray[np.float64]], width: int) -> bytes:
    record = _record(width)
    table = np.empty(min(len(rows), _MOST_BYTES // record.itemsize - 1), record)
    for index, (key, row) in zip(range(len(table)), rows.items(), strict=False):
        table[index] = (np.frombuffer(key, np.uint8), row)
    body = table.tobytes()
    return _MAGIC + digest(body).encode() + body
