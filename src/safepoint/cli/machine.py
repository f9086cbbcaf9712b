"""What the machine itself can do with some bytes: its disk without a file format, its memory without a framework.

The limits against which `safepoint bench` and the project's benchmarks put their figures.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safepoint.store import aligned_buffer, touch

_PIECE = 16 << 20
_THREADS = 2
_DIRECT = getattr(os, "O_DIRECT", 0)


def page_aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Touched memory that starts on a page."""
    memory = aligned_buffer(-(-num_bytes // 4096) * 4096)
    touch(memory)
    memory[:] = 1
    return memory


def raw_write(path: Path, num_bytes: int, memory: NDArray[np.uint8]) -> None:
    """Aligned, preallocated writes of that many bytes by two threads past the page cache, where the disk takes them.

    Args:
        path: of the file.
        num_bytes: to write.
        memory: `page_aligned`, 16 MiB.
    """
    size = -(-num_bytes // 4096) * 4096
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _DIRECT, 0o600)
    except OSError:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)

        def write(offset: int) -> None:
            os.pwrite(descriptor, memory[: min(_PIECE, size - offset)].data, offset)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(write, range(0, size, _PIECE)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raw_read(path: Path, memory: NDArray[np.uint8], *, direct: bool) -> None:
    """Reads of a whole file into touched memory by two threads; `direct` past the page cache, where the disk takes it.

    Args:
        path: of the file.
        memory: `page_aligned`, 32 MiB.
        direct: not from the page cache.
    """
    size = path.stat().st_size
    try:
        descriptor = os.open(path, os.O_RDONLY | (_DIRECT if direct else 0))
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
    buffers = [memory[i * _PIECE : (i + 1) * _PIECE].data for i in range(_THREADS)]
    try:

        def read(worker: int) -> None:
            for offset in range(worker * _PIECE, size, _THREADS * _PIECE):
                os.preadv(descriptor, [buffers[worker]], offset)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(read, range(_THREADS)))
    finally:
        os.close(descriptor)


def memcpy(sources: Sequence[NDArray[np.generic]], targets: Sequence[NDArray[np.generic]]) -> None:
    """One copy of the state, one thread."""
    for source, target in zip(sources, targets, strict=True):
        np.copyto(target, source)


def sync(path: Path) -> None:
    """Make a file, or all of a folder, durable with its names: what a careful user adds to other libraries."""
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    for target in [*inside, path.parent]:
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def forget(path: Path) -> None:
    """Drop a file, or all of a folder, from the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def peak_bytes() -> int:
    """The most memory that this process held since the last `reset_peak`; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def reset_peak() -> int:
    """Forget the peak; returns what is held now. Source: proc(5), clear_refs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def described() -> str:
    """The machine in a line: processors, memory, versions."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    versions = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    return f"{os.cpu_count()} x {cpu or platform.machine()}, {f'{memory} GiB, ' if memory else ''}{versions}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
