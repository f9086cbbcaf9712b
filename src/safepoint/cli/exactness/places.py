"""Where a script's repositories and models really are: in a folder of ours, so that the user's own are never touched.

Invariant: nothing is written or deleted outside that folder. What the script only reads and has not written in this run
is the user's: a repository is linked, file by file, into the folder, which is safe because its files never change.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, final

_LOCK = "lock"  # a link to it would be the same lock


@final
class Places:
    """Maps paths of the script to paths under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def own(self, path: str | os.PathLike[str]) -> Path:
        """Where something that the script calls `path` is kept in this run."""
        absolute = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100 — symbolic links stay what the script says
        if absolute.is_relative_to(self._root):
            return absolute
        return self._root / absolute.relative_to(absolute.anchor)

    def repository(self, path: Any) -> Any:
        """The repository that `path` is here: this run's own, or one of the user's, linked."""
        if not isinstance(path, str | os.PathLike):
            return path  # a store that is no folder
        own = self.own(path)
        theirs = Path(path)
        if not own.exists() and (theirs / "safepoint.json").is_file():
            shutil.copytree(theirs, own, copy_function=_link)
        return own

    def model(self, path: str | os.PathLike[str]) -> str:
        """Where a model that was saved in this run is; else the user's."""
        own = self.target(path)
        return own if os.path.exists(own) else os.fspath(path)  # noqa: PTH110 — a slash at its end has a meaning

    def target(self, path: str | os.PathLike[str]) -> str:
        """Where a model is to be saved."""
        own = self.own(path)
        own.parent.mkdir(parents=True, exist_ok=True)
        return f"{own}/" if os.fspath(path).endswith("/") else str(own)


def _link(source: str, target: str) -> None:
    if Path(source).name == _LOCK:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
