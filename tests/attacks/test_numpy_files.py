"""Hostile `.npy` and `.npz` files."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.attacks.watching import refused

import safepoint


def npy(header: bytes, data: bytes = b"\0" * 80, *, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def shaped(shape: str, descr: str = "'<f8'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


FILES = {
    "objects": (npy(shaped("(10,)", "'|O'")), safepoint.UntrustedError),
    "records with objects": (npy(shaped("(5,)", "[('a', '|O'), ('b', '<i8')]")), safepoint.UntrustedError),
    "records": (npy(shaped("(5,)", "[('a', '<i8'), ('b', '<i8')]")), safepoint.UnsupportedError),
    "times": (npy(shaped("(10,)", "'<M8[ns]'")), safepoint.UnsupportedError),
    "a call": (npy(b"__import__('os').system('x')\n"), safepoint.CorruptionError),
    "a call in the shape": (npy(shaped("(exit(),)")), safepoint.CorruptionError),
    "a shape that lies": (npy(shaped("(65536, 65536)")), safepoint.CorruptionError),
    "a shape beyond 2**64": (npy(shaped("(4294967296, 4294967296, 4294967296)")), safepoint.CorruptionError),
    "a negative shape": (npy(shaped("(-10,)")), safepoint.CorruptionError),
    "a header of 4 GB": (b"\x93NUMPY\x02\0" + b"\xff" * 4, safepoint.CorruptionError),
    "a header of parentheses": (npy(b"(" * 60_000), safepoint.CorruptionError),
    "bytes behind": (npy(shaped("(9,)")), safepoint.CorruptionError),
    "cut short": (npy(shaped("(10,)"))[:-1], safepoint.CorruptionError),
    "version 9": (npy(shaped("(10,)"), version=9), safepoint.CorruptionError),
    "text of a gigabyte": (npy(shaped("()", "'<U268435456'")), safepoint.CorruptionError),
}


@pytest.mark.parametrize("data, error", FILES.values(), ids=FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_hostile_array_is_refused(data: bytes, error: type[Exception], zipped, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.npy", data)
    else:
        path.write_bytes(data)
    refused(path, error)


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../x.npy", "a\\x.npy", "a\nx.npy"])
def test_a_member_cannot_name_a_file_elsewhere(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr(name, npy(shaped("(10,)")))
    refused(tmp_path / "x.npz", safepoint.CorruptionError, "no archive has")


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name in ("a.npy", "A.npy"):
            file.writestr(name, npy(shaped("(10,)")))
    refused(tmp_path / "x.npz", safepoint.CorruptionError, "twice")


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (1200 << 17,)})
    header = buffer.getvalue()
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:  # noqa: SIM117
        with file.open("a.npy", "w", force_zip64=True) as member:
            member.write(header)
            for _ in range(1200):
                member.write(bytes(1 << 20))
    with safepoint.open(tmp_path / "x.npz") as tensors:
        assert tensors["a"].shape == (1200 << 17,)
        with pytest.raises(safepoint.UnsupportedError, match="bytes of memory"):
            tensors["a"].numpy()
