"""Where bytes live: stores that create, read ranges, list and delete, and cannot overwrite."""

from safepoint.store.buffers import aligned_buffer, touch
from safepoint.store.files import nearest_path, replace_file
from safepoint.store.local import LocalStore, reader_past_cache, waits_for_disk
from safepoint.store.memory import MemoryStore
from safepoint.store.protocol import Sink, Store
from safepoint.store.room import spare_memory

__all__ = [
    "LocalStore",
    "MemoryStore",
    "Sink",
    "Store",
    "aligned_buffer",
    "nearest_path",
    "reader_past_cache",
    "replace_file",
    "spare_memory",
    "touch",
    "waits_for_disk",
]
