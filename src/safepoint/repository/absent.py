"""What to say where a repository was expected and there is none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safepoint.errors import NotFoundError
from safepoint.repository.layout import FORMAT_FILE
from safepoint.store import Store, nearest_path


def no_repository(store: Store) -> NotFoundError:
    """The error that says what is there instead, and where a repository may be."""
    path = Path(store.location)
    if not store.exists():
        near = nearest_path(path)
        hint = f"did you mean {near}?" if near else "check the path"
        return NotFoundError(f"there is nothing at {store.location}", expected="a repository or a file", hint=hint)
    runs = sorted(str(found.parent) for found in path.glob(f"*/{FORMAT_FILE}"))
    if runs:
        return NotFoundError(
            f"{store.location} is a folder of runs",
            expected="one repository",
            found=_listed(runs),
            hint="name one of them",
        )
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return NotFoundError(
        f"{store.location} is not a safepoint repository",
        expected=FORMAT_FILE,
        found=f"a folder with {_listed(names)}" if names else "something else",
        hint="check the path",
    )


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:4]) + (", ..." if len(first) > 4 else "")
