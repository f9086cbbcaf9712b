"""Where bytes live: stores that create, read ranges, list and delete, and cannot overwrite."""

from safepoint.store.buffers import aligned_buffer, touch
from safepoint.store.files import nearest_path, replace_file
from safepoint.store.local import LocalStore
from safepoint.store.memory import MemoryStore
from safepoint.store.protocol import Sink, Store

__all__ = ["LocalStore", "MemoryStore", "Sink", "Store", "aligned_buffer", "nearest_path", "replace_file", "touch"]
