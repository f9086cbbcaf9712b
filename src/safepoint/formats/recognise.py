"""Which format a file or folder is, by its content: its name says nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats import safetensors
from safepoint.formats.contents import Contents
from safepoint.formats.files import File

_HEAD_BYTES = 128
_MODEL = "model.safetensors"
_KNOWN = "safetensors, PyTorch, NumPy, HDF5, Keras, TensorFlow, Orbax, ONNX or GGUF"


def read(path: str) -> Contents:
    """What the file or folder at `path` holds; opens it, reads no tensor.

    Raises:
        NotFoundError: nothing is there.
        UnsupportedError: a format that is not read; says which, and what would help.
        CorruptionError: it is not what it claims to be.
    """
    place = Path(path)
    if place.is_dir():
        return _read_folder(place)
    file = File(place if place.exists() else f"{path}.index")
    try:
        return _read_file(file)
    except BaseException:
        file.close()
        raise


def is_known_file(path: str) -> bool:
    """Whether a path names a file, which `read` reads or refuses by what it is; or a TensorFlow checkpoint's prefix."""
    return Path(path).is_file() or Path(f"{path}.index").is_file()


def is_known_folder(path: str) -> bool:
    """Whether a folder holds something that `read` reads."""
    folder = Path(path)
    return any(find(folder) is not None for find in (_folder_kind, _entry_of, _newest_step))


def is_marked_folder(path: str) -> bool:
    """Whether a folder is one checkpoint as a whole, by the one file that only such a folder has."""
    return _folder_kind(Path(path)) is not None


def _folder_kind(folder: Path) -> str | None:
    """What a folder is by the one file that only it has."""
    marks = {
        "saved_model.pb": "saved_model",
        ".metadata": "distributed",
        "_METADATA": "orbax",
        "_CHECKPOINT_METADATA": "orbax",
    }
    return next((kind for mark, kind in marks.items() if (folder / mark).exists()), None)


def _newest_step(folder: Path) -> Path | None:
    """The newest step in a folder of Orbax' steps."""
    from safepoint.formats import orbax

    return orbax.newest_step(folder)


def _entry_of(folder: Path) -> Path | None:
    """The file of a folder that tells what is in it."""
    for name in (_MODEL, "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    indices = sorted([*folder.glob(safetensors.INDEX), *folder.glob("*.bin.index.json")])
    if len(indices) == 1:
        return indices[0]
    from safepoint.formats import tf_checkpoint

    return tf_checkpoint.newest_prefix(folder)


def _read_folder(folder: Path) -> Contents:
    kind = _folder_kind(folder)
    if kind == "saved_model":
        from safepoint.formats import tf_checkpoint

        return tf_checkpoint.read_saved_model(folder)
    if kind == "distributed":
        from safepoint.formats import distributed

        return distributed.read(folder)
    if kind == "orbax":
        from safepoint.formats import orbax

        return orbax.read(folder)
    entry = _entry_of(folder) or _newest_step(folder)
    if entry is None:
        raise UnsupportedError(f"{folder} is a folder of no format that is known", found=_listed(folder))
    return read(str(entry))


def _read_file(file: File) -> Contents:
    head = file.head(_HEAD_BYTES)
    if not head:
        what = f"{file.path} is an empty file"
        raise CorruptionError(what, file=file.path, expected="tensors", found="0 bytes", hint="check the path")
    if safetensors.looks_like(head):
        return safetensors.read(file)
    reader = next((reader for magic, reader in _MAGIC if head.startswith(magic)), None)
    if reader is not None:
        return reader(file)
    if head.lstrip().startswith(b"{") and b'"weight_map"' in file.head(1 << 20):
        return _read_index(file)
    return _read_without_magic(file, head)


def _read_without_magic(file: File, head: bytes) -> Contents:
    from safepoint.formats import onnx, sstable, tf_checkpoint

    if file.num_bytes >= 48 and file.read(file.num_bytes - 8, 8) == sstable.MAGIC:
        return tf_checkpoint.read(file)
    if head[:1] == b"\x08" and onnx.looks_like(file):
        return onnx.read(file)
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\n\r" for c in text):
        found = f"text that begins {text[:40]!r}"
        raise CorruptionError(f"{file.path} is a text file", file=file.path, found=found, hint="check the path")
    if head[4:8] == b"TFL3":
        raise UnsupportedError(
            f"{file.path} is a TensorFlow Lite model, whose weights are laid out for its own runtime",
            expected=_KNOWN,
            hint="open the SavedModel or Keras model that it was made from",
        )
    if len(head) > 8 and head[8:9] != b"{" and int.from_bytes(head[:8], "little") > file.num_bytes:
        raise UnsupportedError(
            f"{file.path} is of no format that is known",
            expected=_KNOWN,
            found=f"a file that begins {head[:8].hex(' ')}",
            hint="check the path; an encrypted or compressed file is to be unpacked first",
        )
    return safetensors.read(file)  # says what is wrong with it


def _read_archive(file: File) -> Contents:
    from safepoint.formats import hdf5_file, numpy_file, pytorch
    from safepoint.formats.members import Archive

    archive = Archive(file)
    prefix = pytorch.archive_prefix(archive)
    if prefix is not None:
        return pytorch.read_archive(archive, prefix)
    if hdf5_file.is_keras(archive):
        return hdf5_file.read_keras(archive)
    if archive.members and all(name.endswith(".npy") for name in archive.members):
        return numpy_file.read_archive(archive)
    raise UnsupportedError(
        f"{file.path} is a zip file of no format that is known", found=", ".join(list(archive.members)[:5])[:200]
    )


def _read_pickle(file: File) -> Contents:
    from safepoint.formats import pytorch

    return pytorch.read_pickle(file)


def _read_hdf5(file: File) -> Contents:
    from safepoint.formats import hdf5_file

    return hdf5_file.read(file)


def _read_array(file: File) -> Contents:
    from safepoint.formats import numpy_file

    return numpy_file.read(file)


def _read_gguf(file: File) -> Contents:
    from safepoint.formats import gguf

    return gguf.read(file)


def _read_index(file: File) -> Contents:
    """Shards of safetensors, or of PyTorch's files, with an index of the same form."""
    from safepoint.formats import sharded

    return sharded.read(file, _read_shard)


def _read_shard(file: File) -> Contents:
    if safetensors.looks_like(file.head(_HEAD_BYTES)):
        return safetensors.read(file)
    if file.head(4) == b"PK\x03\x04":
        return _read_archive(file)
    return _read_pickle(file)


_MAGIC: tuple[tuple[bytes, Callable[[File], Contents]], ...] = (
    (b"PK\x03\x04", _read_archive),
    *((bytes([0x80, protocol]), _read_pickle) for protocol in (2, 3, 4, 5)),
    (b"\x89HDF\r\n\x1a\n", _read_hdf5),
    (b"\x93NUMPY", _read_array),
    (b"GGUF", _read_gguf),
)


def _listed(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
