"""PyTorch's files: zip archives, the older sequence of pickles, shards with an index; and pickles of plain arrays.

Every pickle goes through `pickles`, so nothing is run. Checksums of a zip file are compared whenever a tensor is read
as a whole, once a record; a slice reads its own bytes only. Source: `torch/serialization.py` of PyTorch 2.13.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.contents import Contents, check_inside
from safepoint.formats.cursor import Cursor
from safepoint.formats.files import Readable
from safepoint.formats.members import Archive
from safepoint.formats.nested import tree_of
from safepoint.formats.pickles import Unpickler
from safepoint.formats.torch_names import Storage, is_inert, names, storage_dtype
from safepoint.tree import DTYPES
from safepoint.tree.leaves import Bytes

KIND = "pytorch"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 256 << 20
_MAX_LOGICAL = 1 << 30


def archive_prefix(archive: Archive) -> str | None:
    """The folder in a zip file that makes it PyTorch's, or None."""
    found = [name for name in archive.members if name.endswith("data.pkl") and name.count("/") <= 1]
    return found[0].removesuffix("data.pkl") if len(found) == 1 else None


def read_archive(archive: Archive, prefix: str) -> Contents:
    """The contents of a zip file that `torch.save` wrote.

    Raises:
        UntrustedError: it names something that is no tensor and no plain value.
        UnsupportedError: a TorchScript or exported program, or one of a big-endian machine.
        CorruptionError: it is damaged.
    """
    file, members = archive.file, archive.members
    if any(name.startswith(f"{prefix}code/") for name in members) or f"{prefix}constants.pkl" in members:
        raise UnsupportedError(
            f"{file.path} is a TorchScript program, and loading it would run what it says",
            hint="load it where you trust it with torch.jit.load, and save its state_dict()",
        )
    if f"{prefix}byteorder" in members and archive.content(f"{prefix}byteorder", at_most=16) != b"little":
        raise UnsupportedError(f"{file.path} was written by a big-endian machine", hint="save it again elsewhere")
    pickle = members[f"{prefix}data.pkl"]
    data = archive.content(pickle.name, at_most=_MAX_PICKLE_BYTES)

    def persistent(identity: Any) -> Storage:
        kind, storage_class, key, _location, count = identity
        if kind != "storage" or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a persistent id of another kind")
        dtype, name = storage_dtype(storage_class), f"{prefix}data/{key}"
        num_bytes = count * DTYPES[dtype].itemsize
        if name not in members or members[name].num_bytes != num_bytes:
            found = members[name].num_bytes if name in members else "no such record"
            raise CorruptionError(
                f"{file.path} is damaged: storage {key[:40]!r}",
                file=file.path,
                expected=f"{num_bytes} bytes",
                found=found,
            )
        return Storage(dtype, num_bytes, partial(_read_member, archive, name), file.path)

    cursor = Cursor(lambda start, length: data[start : start + length], 0, len(data), file=file.path)
    content = Unpickler(cursor, names(), inert=is_inert, persistent=persistent).load()
    return _contents(content, file, "PyTorch file")


def _read_member(archive: Archive, name: str, start: int, stop: int, whole: bool) -> Bytes:  # noqa: FBT001 — `ReadStorage`
    return archive.whole(name, start, stop) if whole else archive.part(name, start, stop)


def read_pickle(file: Readable) -> Contents:
    """The contents of a file that begins with a pickle: PyTorch's before 1.6, or one pickle of plain arrays.

    Raises:
        As `read_archive`.
    """
    cursor = Cursor(file.read, 0, file.num_bytes, file=file.path)
    keys: dict[str, tuple[str, int]] = {}

    def persistent(identity: Any) -> Storage:
        kind, storage_class, key, _location, count, *rest = identity
        if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("a persistent id of another kind")
        dtype = storage_dtype(storage_class)
        if keys.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError("a storage of two kinds")
        first, size = 0, count
        if rest and rest[0] is not None:
            _, first, size = rest[0]
        itemsize = DTYPES[dtype].itemsize
        if type(first) is not int or type(size) is not int or not 0 <= first <= first + size <= count:
            raise ValueError("a view outside its storage")
        return Storage(dtype, size * itemsize, partial(_read_stretch, file, places, key, first * itemsize), file.path)

    places: dict[str, int] = {}

    def unpickle() -> Any:
        return Unpickler(cursor, names(), inert=is_inert, persistent=persistent).load()

    content = unpickle()
    if content != _MAGIC:
        if cursor.position != file.num_bytes:
            raise CorruptionError(f"{file.path} is a pickle with something behind it", file=file.path)
        return _contents(content, file, "pickle of arrays and values", kind="pickle")
    if unpickle() != _PROTOCOL or unpickle().get("little_endian") is not True:
        raise UnsupportedError(
            f"{file.path} is a PyTorch file of another kind", hint="save it with PyTorch 1.6 or later"
        )
    content = unpickle()
    _place_storages(file, cursor, unpickle(), keys, places)
    return _contents(content, file, "PyTorch file, before 1.6")


def _read_stretch(
    file: Readable,
    places: dict[str, int],
    key: str,
    first: int,
    start: int,
    stop: int,
    _whole: bool,  # noqa: FBT001
) -> Bytes:
    return file.array(places[key] + first + start, stop - start)


def _place_storages(
    file: Readable, cursor: Cursor, order: Any, keys: dict[str, tuple[str, int]], places: dict[str, int]
) -> None:
    """Where each storage's bytes are: a count of elements, then the elements, in the order of the keys."""
    if not isinstance(order, list) or len(order) != len(keys):
        raise CorruptionError(f"{file.path} is damaged: its storages are not those that it names", file=file.path)
    position = cursor.position
    for key in order:
        if not isinstance(key, str) or key not in keys or key in places:
            raise CorruptionError(f"{file.path} is damaged: a storage that nothing names", file=file.path)
        dtype, count = keys[key]
        if int.from_bytes(file.read(position, 8), "little") != count:
            raise CorruptionError(f"{file.path} is damaged: a storage of another size", file=file.path, name=key)
        places[key] = position + 8
        check_inside(file, position + 8, count * DTYPES[dtype].itemsize)
        position += 8 + count * DTYPES[dtype].itemsize
    if position != file.num_bytes:
        raise CorruptionError(f"{file.path} has bytes behind its last storage", file=file.path)


def _contents(content: Any, file: Readable, title: str, *, kind: str = KIND) -> Contents:
    tree = tree_of(content, file=file.path)
    if tree.num_bytes > 64 * file.num_bytes + _MAX_LOGICAL:
        raise CorruptionError(
            f"{file.path} shows the same bytes again and again",
            file=file.path,
            expected="tensors of about its own size",
            found=f"{tree.num_bytes:,} bytes in a file of {file.num_bytes:,}",
        )
    return Contents(kind, title, "PyTorch" if kind == KIND else "", file.path, tree, {}, (file,))
