"""Where each document of a repository is: its file name, and back.

Invariant: only the exact spelling counts, so that one number is one file.
"""

from __future__ import annotations

import re
from functools import lru_cache

_REMEMBERED = 1 << 16  # names that each save lists again

FORMAT_FILE = "safepoint.json"
_SNAPSHOT = re.compile(r"(\d{8,18})\.json", re.ASCII)
_MARK = re.compile(r"(\d{8,18})-(\d{1,9})\.json", re.ASCII)
_MOVED = re.compile(r"([0-9a-f]{24})-(\d{1,9})\.json", re.ASCII)
_MANIFEST = re.compile(r"([0-9a-f]{24})\.json")
_PACK = re.compile(r"([0-9a-f]{24})\.safetensors")


def snapshot_file(number: int) -> str:
    """The file name of a snapshot."""
    return f"snapshots/{number:08d}.json"


def mark_file(number: int, k: int) -> str:
    """The file name of a mark."""
    return f"marks/{number:08d}-{k}.json"


def manifest_file(manifest: str) -> str:
    """The file name of a manifest."""
    return f"manifests/{manifest}.json"


def pack_file(pack: str) -> str:
    """The file name of a pack."""
    return f"packs/{pack}.safetensors"


def moved_file(pack: str, k: int) -> str:
    """The file name of a document about a pack of which blocks were moved or found damaged."""
    return f"moved/{pack}-{k}.json"


@lru_cache(_REMEMBERED)
def snapshot_number(file: str) -> int | None:
    """The number in a file name of `snapshots/`, or None for a stranger's file."""
    found = _SNAPSHOT.fullmatch(file)
    number = int(found[1]) if found else None
    return number if number is not None and snapshot_file(number) == f"snapshots/{file}" else None


@lru_cache(_REMEMBERED)
def mark_numbers(file: str) -> tuple[int, int] | None:
    """(number, k) in a file name of `marks/`, or None for a stranger's file."""
    found = _MARK.fullmatch(file)
    numbers = (int(found[1]), int(found[2])) if found else None
    return numbers if numbers is not None and mark_file(*numbers) == f"marks/{file}" else None


def moved_numbers(file: str) -> tuple[str, int] | None:
    """(pack, k) in a file name of `moved/`, or None for a stranger's file."""
    found = _MOVED.fullmatch(file)
    numbers = (found[1], int(found[2])) if found else None
    return numbers if numbers is not None and moved_file(*numbers) == f"moved/{file}" else None


def manifest_id(file: str) -> str | None:
    """The id in a file name of `manifests/`, or None for a stranger's file."""
    found = _MANIFEST.fullmatch(file)
    return found[1] if found else None


def pack_id(file: str) -> str | None:
    """The id in a file name of `packs/`, or None for a stranger's file."""
    found = _PACK.fullmatch(file)
    return found[1] if found else None
