"""Giving a finished file its name, where and only where that name is free: by a link, or by a rename that refuses.

Invariant: a name that is taken stays what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
from pathlib import Path

_log = logging.getLogger("safepoint")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_HERE = -100  # AT_FDCWD
_NO_REPLACE = 1  # RENAME_NOREPLACE. Source: renameat2(2), Linux 3.15
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
_told: set[Path] = set()


def name_file(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`; the old name is gone afterwards, or is left to the collector.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file system refused, or can neither link nor rename without replacing.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not _is_ours(temporary, path):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename(temporary, path, error)
        return
    with contextlib.suppress(OSError):  # the file is there; collection removes its second name
        os.unlink(temporary)


def _is_ours(temporary: Path, path: Path) -> bool:
    """Whether the name was taken by this very link: on NFS a reply may be lost, and the repeated call be refused.

    Source: open(2), O_EXCL: "if its link count has increased to 2, the lock is also successful".
    """
    try:
        return os.path.samestat(os.lstat(temporary), os.lstat(path))
    except OSError:
        return False


def _rename(temporary: Path, path: Path, refusal: OSError) -> None:
    """For FUSE, exFAT and others without hard links: rename that never replaces, which is as good."""
    if _renameat2 is None:
        raise refusal
    if _renameat2(_HERE, os.fsencode(temporary), _HERE, os.fsencode(path), _NO_REPLACE) != 0:
        number = ctypes.get_errno()
        if number == errno.EEXIST:
            raise FileExistsError(number, os.strerror(number), str(path))
        raise refusal  # EINVAL, ENOSYS: this file system cannot do that either
    if path.parent.parent not in _told:
        _told.add(path.parent.parent)
        _log.info("%s: no hard links here, naming files by renames that never replace", path.parent.parent)
