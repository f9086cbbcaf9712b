"""Safetensors. Nothing vouches for the bytes, which carry no checksum.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

from safepoint.codec import read_header
from safepoint.formats.contents import Contents, stretch
from safepoint.formats.files import File
from safepoint.tree import Leaf, StateTree, TensorSpec

KIND = "safetensors"
INDEX = "*.safetensors.index.json"


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with `head` (9 bytes or more) may be one: a length, then a JSON object."""
    return head[8:9] == b"{" and head[5:8] == b"\0\0\0"


def read(file: File) -> Contents:
    """The contents of one file; reads and checks its header.

    Raises:
        CorruptionError: it is no safetensors file, or cut short.
    """
    header = read_header(file.read, file.num_bytes, file=file.path)
    leaves: dict[str, Leaf] = {
        entry.name: stretch(file, header.data_start + entry.start, TensorSpec(entry.shape, entry.dtype_name))
        for entry in header.entries
    }
    metadata = {"metadata": dict(header.metadata)} if header.metadata else {}
    framework = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax", "mlx": "MLX", "np": "NumPy"}
    return Contents(
        KIND,
        "safetensors file",
        framework.get(header.metadata.get("format", ""), ""),
        file.path,
        StateTree(leaves),
        metadata,
        (file,),
    )
