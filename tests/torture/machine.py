"""What this machine lets a test do: mount disks, trace processes. Where it should and does not, CI fails."""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from safepoint.store.files import sync_folder

_CAP_SYS_ADMIN = 21


def may_mount() -> bool:
    """Whether this process has what mounting a loop device takes."""
    status = Path("/proc/self/status").read_text(encoding="ascii") if Path("/proc/self/status").exists() else ""
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1) and Path("/dev/loop-control").exists()


def need(program: str) -> str:
    """The path of a program; a visible skip where it is not installed."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def give_up(reason: str, *, expected: bool) -> None:
    """Skip what the machine refused; in CI that is a failure if it has the right to."""
    if expected and os.environ.get("CI") == "true":
        pytest.fail(f"expected to work here: {reason}")
    pytest.skip(reason)


@dataclass
class RealDisk:
    """A file system on an image, whose power can be cut.

    Attributes:
        place: where it is mounted.
    """

    image: Path
    place: Path
    options: str

    def mount(self) -> None:
        options = f"loop,{self.options}" if self.options else "loop"
        subprocess.run(["mount", "-o", options, str(self.image), str(self.place)], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True, capture_output=True)

    def cut(self) -> None:
        """What was not written to the disk by now never will be: the journal is not flushed either.

        Source: `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN` in Linux, with the flag NOLOGFLUSH.
        """
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", 2))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """Start again, as after a power cut: the journal is replayed."""
        self.unmount()
        self.mount()

    def remove(self, folder: Path) -> None:
        """Delete a folder for good: what is not on the disk yet when the power is cut again would be back."""
        shutil.rmtree(folder, ignore_errors=True)
        sync_folder(folder.parent)


_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
_XFS_IMAGE = (
    Path(__file__).parent / "images" / "xfs-64m.img.xz"
)  # empty, `mkfs.xfs --unsupported` (xfsprogs 6.1), 64 MiB
FILE_SYSTEMS = {
    "ext4": "", "ext4 noauto_da_alloc": "noauto_da_alloc", "ext4 data=writeback": "data=writeback", "xfs": "nouuid",
}  # fmt: skip


@contextmanager
def real_disk(kind: str, folder: Path) -> Iterator[RealDisk]:
    """A small disk of one of `FILE_SYSTEMS`, mounted; a visible skip where this process may not mount."""
    if not may_mount():
        give_up("mounting takes CAP_SYS_ADMIN and loop devices", expected=False)
    disk = RealDisk(folder / "image", folder / "mounted", FILE_SYSTEMS[kind])
    disk.place.mkdir()
    if kind == "xfs":
        with lzma.open(_XFS_IMAGE) as packed, disk.image.open("wb") as image:
            while page := packed.read(1 << 16):
                image.seek(len(page), os.SEEK_CUR) if not any(page) else image.write(page)
            image.truncate(64 << 20)
    else:
        with disk.image.open("wb") as image:
            image.truncate(64 << 20)
        command = [need("mkfs.ext4"), "-q", "-F", "-O", "^resize_inode", str(disk.image)]
        subprocess.run(command, check=True, capture_output=True)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        give_up(f"cannot mount {kind}: {error.stderr.decode().strip()}", expected=True)
    try:
        yield disk
    finally:
        disk.unmount()
