"""Which formats are written, which one a path means, and how a file takes its place: whole, durable and looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from safepoint.errors import ExistsError, NotFoundError, UnsupportedError
from safepoint.formats.writing import hdf5_file, numpy_archive, pytorch, safetensors, tensorflow
from safepoint.formats.writing.content import Content
from safepoint.formats.writing.output import Output
from safepoint.store import replace_file
from safepoint.store.files import make_folder

Kind = Literal["safetensors", "npz", "pytorch", "hdf5", "tensorflow"]


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A format that is written.

    Attributes:
        kind: of the format.
        suffixes: of paths that mean it.
        check: raises where something has no place in it.
        write: writes it; None: more than one file.
        keeps_values: whether plain values have a place.
    """

    kind: Kind
    suffixes: tuple[str, ...]
    check: Callable[[Content], None]
    write: Callable[[Content, Output], None] | None
    keeps_values: bool


TARGETS: dict[str, Target] = {
    target.kind: target
    for target in (
        Target("safetensors", (".safetensors",), safetensors.check, safetensors.write, keeps_values=True),
        Target("pytorch", (".pt", ".pth", ".bin"), pytorch.check, pytorch.write, keeps_values=True),
        Target("npz", (".npz",), numpy_archive.check, numpy_archive.write, keeps_values=False),
        Target("hdf5", (".h5", ".hdf5"), hdf5_file.check, hdf5_file.write, keeps_values=False),
        Target("tensorflow", (".index",), tensorflow.check, None, keeps_values=False),
    )
}
"""Every format that is written, by its word."""


def target_of(path: str) -> Target | None:
    """The format that a path's suffix means; None: it has no suffix.

    Raises:
        UnsupportedError: a suffix that means none, or several.
    """
    suffix = "" if path.endswith("/") else Path(path).suffix.lower()
    found = next((target for target in TARGETS.values() if suffix in target.suffixes), None)
    if found is not None or not suffix:
        return found
    known = ", ".join(suffix for target in TARGETS.values() for suffix in target.suffixes)
    several = "Lightning's and TensorFlow's" if suffix == ".ckpt" else "no format that is written"
    raise UnsupportedError(
        f"the suffix of {path} is {several}",
        expected=f"{known}, or none for a repository",
        found=suffix,
        hint="say which one: --to FORMAT",
    )


def files_of(target: Target, path: Path) -> list[Path]:
    """The files that `write` makes."""
    if target.kind != "tensorflow":
        return [path]
    prefix = _prefix(path)
    return [tensorflow.index_of(prefix), tensorflow.shard_of(prefix)]


def check_room(target: Target, path: Path, *, force: bool) -> None:
    """Whether `write` may have the name.

    Raises:
        ExistsError: it is taken, and `force` is False or it is no file's.
        UnsupportedError: a checkpoint of several files, which cannot be replaced in one step.
        NotFoundError: no file can have that name.
    """
    taken = files_of(target, path)[0]
    try:
        if not taken.exists() and not taken.is_symlink():
            return
    except (OSError, ValueError) as error:  # too long, or no name at all
        raise NotFoundError(f"{str(path)[:80]!r} is not a path", found=error, hint="check it") from error
    if taken.is_symlink() or not taken.is_file():
        what = "a link" if taken.is_symlink() else "a folder" if taken.is_dir() else "no regular file"
        raise ExistsError(f"{taken} is {what}", expected="the name of a file", hint="choose another name")
    if not force:
        raise ExistsError(f"{taken} exists already", hint="choose another name, or replace it: --force")
    if target.kind == "tensorflow":
        raise UnsupportedError(
            f"{taken} is part of a checkpoint of several files, which no rename replaces as one",
            hint="choose another name, or delete them first",
        )


def write(
    target: Target, path: Path, content: Content, *, force: bool, check: Callable[[str], None]
) -> tuple[Path, int]:
    """Write a file that takes its name when it is durable and `check` let it pass; a crash leaves what was there.

    Args:
        target: the format; `target.check` came before.
        path: of the file; of a TensorFlow checkpoint, its prefix or index.
        content: what is written.
        force: replace what has the name.
        check: given the path of the written file, raises if it is not what it must be.

    Returns:
        Where it is, and the bytes written.

    Raises:
        ExistsError: the name is taken.
        StoreError: the disk refused; what was there is untouched.
    """
    make_folder(path.parent)
    if target.write is not None:
        return path, _write_file(path, content, target.write, force=force, check=check)
    return _write_checkpoint(_prefix(path), content, check)


def _write_file(
    path: Path, content: Content, fill: Callable[[Content, Output], None], *, force: bool, check: Callable[[str], None]
) -> int:
    sink = replace_file(path, replace=force, direct=False)
    try:
        sink.reserve(content.num_bytes)
        with Output(sink) as out:
            fill(content, out)
        sink.commit(out.position, check)
        return out.position
    finally:
        sink.abort()


def _write_checkpoint(prefix: Path, content: Content, check: Callable[[str], None]) -> tuple[Path, int]:
    """The bytes, then the index, without which they are nothing: a shard that a crash left is replaced."""
    entries: dict[str, bytes] = {}
    shard, index = tensorflow.shard_of(prefix), tensorflow.index_of(prefix)

    def fill(content: Content, out: Output) -> None:
        entries.update(tensorflow.write_shard(content, out))

    def fill_index(_content: Content, out: Output) -> None:
        tensorflow.write_index(entries, out)

    num_bytes = _write_file(shard, content, fill, force=True, check=lambda _path: None)
    ours = [shard]
    try:
        num_bytes += _write_file(index, Content({}, {}, {}), fill_index, force=False, check=lambda _path: None)
        ours.append(index)
        check(str(prefix))
    except BaseException:
        for file in reversed(ours):
            with contextlib.suppress(OSError):
                file.unlink()
        raise
    return prefix, num_bytes


def _prefix(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".index"))
