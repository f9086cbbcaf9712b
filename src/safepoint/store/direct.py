"""Reading past the page cache, where that is worth it: what is larger than memory, and read once.

Such a file takes pages from others in vain, and their management takes more time than the copy: 6 GB took 0.8 instead
of 6.5 s of processor time, on a virtual machine. What would be read again is better off in the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import numpy as np
from numpy.typing import NDArray

from safepoint.store.buffers import aligned_buffer
from safepoint.store.files import fill_from, read_error
from safepoint.store.protocol import ALIGNMENT

_DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where there is none, and in tests that do without
_BUFFER_BYTES = 16 << 20
_own = threading.local()


def fill_past_cache(descriptor: int, offset: int, data: NDArray[np.uint8], name: str) -> None:
    """As `fill_from`, by direct I/O through memory of this thread's; through the page cache where that is refused.

    Afterwards the descriptor is as it was.

    Raises:
        CorruptionError: the file ends before, or the disk has lost it.
        StoreError: it cannot be read.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    done = 0
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT)
        while _DIRECT and done < len(data):
            found = _read(descriptor, offset + done, len(data) - done)
            if not len(found):
                break  # the file ends
            data[done : done + len(found)] = found
            done += len(found)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has no direct I/O, or not for the rest of a short read
            raise read_error(name, error) from error
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    if done < len(data):
        fill_from(descriptor, offset + done, data[done:], name)


def _read(descriptor: int, offset: int, length: int) -> NDArray[np.uint8]:
    """Some of the bytes from `offset` on, at most `length`; valid until this thread reads again."""
    if not hasattr(_own, "buffer"):
        _own.buffer = aligned_buffer(_BUFFER_BYTES)  # goes with the thread
    start = offset // ALIGNMENT * ALIGNMENT
    whole = min(-(-(offset - start + length) // ALIGNMENT) * ALIGNMENT, _BUFFER_BYTES)
    count = os.preadv(descriptor, [_own.buffer[:whole].data], start)
    found: NDArray[np.uint8] = _own.buffer[offset - start : min(count, offset - start + length)]
    return found
