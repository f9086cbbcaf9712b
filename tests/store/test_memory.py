from __future__ import annotations

from pathlib import Path

import pytest

from safepoint.store import MemoryStore, Store
from safepoint.testing.store_suite import StoreSuite


class TestMemoryStore(StoreSuite):
    @pytest.fixture(autouse=True)
    def one_store(self) -> None:
        self.only = MemoryStore()

    def open_store(self, place: Path) -> Store:
        return self.only
