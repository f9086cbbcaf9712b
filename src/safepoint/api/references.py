"""References: `PATH@latest`, `PATH@best:val_loss`, `PATH@4200`, `PATH@id:17`, `PATH@tag`; one spelling everywhere."""

from __future__ import annotations

import os


def split_reference(text: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The path and the reference (None where there is none); an existing path with an @ in its name is a path."""
    path = os.fspath(text)
    head, at, tail = path.rpartition("@")
    if not at or not head or "/" in tail or os.path.lexists(path):
        return path, None
    return head, tail
