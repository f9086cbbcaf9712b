"""Python's collector of cycles, held off while a state is taken apart or put together.

That makes thousands of small objects, none of them garbage; each few hundred would make the collector walk over more
of what the frameworks hold, for tens of milliseconds: half of what it takes to begin a save of 600 tensors.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """No collection until the end of the context, in any thread; as it was afterwards."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
