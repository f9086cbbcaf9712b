"""The checksum of zip archives is zlib's, whoever works it out."""

from __future__ import annotations

import sys
import zlib

import pytest

from safepoint.codec import crc32
from safepoint.codec.crc32 import _quickest


@pytest.mark.parametrize("installed", [True, False])
def test_it_is_zlibs(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "isal", None)
    _quickest.cache_clear()
    data = bytes(range(256)) * 5000
    try:
        for part in (data, bytearray(data), memoryview(data)[3:], b""):
            assert crc32(part) == zlib.crc32(part)
            assert crc32(part[100:], crc32(part[:100])) == zlib.crc32(part)
        assert (_quickest() is zlib.crc32) >= (not installed)
    finally:
        _quickest.cache_clear()
