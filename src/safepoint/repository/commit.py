"""Saving: packs, then the manifest, then the snapshot, which is the commit; each durable before the next starts.

Invariant: what is named by a committed snapshot is durable before the snapshot is; a crash at any point leaves the old
history, or the old history plus one.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import msgspec

from safepoint.codec import digest
from safepoint.errors import ConflictError, CorruptionError, ExistsError, SafepointError, StoreError, UnsupportedError
from safepoint.limits import MAX_MANIFEST_BYTES
from safepoint.repository.documents import Documents
from safepoint.repository.features import check_features
from safepoint.repository.healing import Recheck, due_after, heal
from safepoint.repository.layout import FORMAT_FILE, manifest_file, pack_file, snapshot_file
from safepoint.repository.manifest import build_document, split_values
from safepoint.repository.pack import WrittenPack, write_pack
from safepoint.repository.places import told
from safepoint.repository.probe import probe
from safepoint.repository.schema import (
    FORMAT_VERSION,
    FormatDocument,
    ManifestDocument,
    ManifestReference,
    PackDocument,
    SnapshotDocument,
    TotalsDocument,
    encode,
    encode_sealed,
)
from safepoint.repository.stored import KnownBlocks, Progress
from safepoint.store import Store
from safepoint.tree import StateTree, check_names

Expected = int | Literal["any"] | None
"""What must still be the newest number: that one, anything, or nothing yet."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def found_repository(documents: Documents) -> None:
    """Make sure that there is a repository that this version may write.

    Raises:
        ExistsError: the place holds something else.
        StoreError: the store does not do what commits rest on.
        UnsupportedError: it has features that this version does not know.
    """
    store = documents.store
    if documents.exists():
        check_features(store)
        return
    if store.exists() and not documents.exists():  # asked again: another process may have been quicker
        raise ExistsError(
            f"{store.location} is not empty and no repository",
            expected="a new or empty folder, or a safepoint repository",
            hint="choose another path",
        )
    document = FormatDocument("safepoint", FORMAT_VERSION, secrets.token_hex(16))
    data = encode_sealed(document)
    try:
        store.create(FORMAT_FILE, data)
    except ExistsError:  # another process was quicker, and tries the store out
        return
    probe(store, data)


def write_snapshot(
    documents: Documents,
    tree: StateTree,
    draft: SnapshotDocument,
    *,
    last: int | None,
    expected: Expected,
    progress: Progress | None,
) -> SnapshotDocument:
    """Write what a snapshot needs, and then the snapshot. The caller holds the shared lock.

    Args:
        documents: of the repository.
        tree: what to save.
        draft: the snapshot, without number, manifest and totals.
        last: the newest number; who commits meanwhile takes the next one, so that `_commit` looks again.
        expected: see `Expected`.
        progress: see `Progress`.

    Raises:
        ConflictError: another writer committed since `expected`.
        StoreError: the store refused; what was committed before is untouched.
        UnsupportedError: a name or value cannot be kept.
    """
    store = documents.store
    check_names(tree.leaves)
    _check_newest(documents, expected, last)
    with _taken_back(store) as files:
        written, packs = _write_tensors(documents, tree, draft.parent, files, progress)
        manifest = build_document(tree, written.stored, packs)
        reference = _write_manifest(store, manifest, files)
        totals = TotalsDocument(len(tree.tensors), tree.num_bytes, written.num_bytes)
        draft = msgspec.structs.replace(draft, manifest=reference, totals=totals)
        encode_sealed(draft)  # too large: before the commit
    committed = _commit(documents, draft, last, expected, [manifest_file(reference.id), *files])
    documents.keep(committed.manifest, written.stored, {pack.id: pack for pack in manifest.packs})
    # The snapshot is durable whatever becomes of this.
    told(partial(heal, documents.places, written.stored.values(), packs))
    return committed


def _write_tensors(
    documents: Documents, tree: StateTree, parent: int | None, files: list[str], progress: Progress | None
) -> tuple[WrittenPack, dict[str, PackDocument]]:
    """Write what the parent's blocks do not hold; those that are used again and due are read back meanwhile.

    Returns:
        What was written, and the packs that its blocks are in.
    """
    store = documents.store
    tensors, _, _ = split_values(tree)
    while True:
        pack = secrets.token_hex(12)
        files.append(pack_file(pack))
        with Recheck(documents.places, due_after(documents, parent)) as recheck:
            known, packs = _parents_blocks(documents, parent, recheck)
            opened = partial(store.sink, pack_file(pack))
            written = write_pack(opened, tensors, pack=pack, known=known, progress=progress)
            damaged = recheck.damaged()
        if not damaged:
            break
        documents.places.mark_damaged(damaged)  # and once more, without them
        _delete(store, [files.pop()])
    if written.num_bytes:
        packs[pack] = PackDocument(pack, written.num_bytes, written.header_bytes, written.header_digest)
    return written, packs


def _write_manifest(store: Store, document: ManifestDocument, files: list[str]) -> ManifestReference:
    data = encode(document)
    if len(data) > MAX_MANIFEST_BYTES:
        raise UnsupportedError(
            "the manifest of this state is too long",
            expected=f"at most {MAX_MANIFEST_BYTES:,} bytes",
            found=f"{len(data):,} bytes",
            hint="keep many small values in few tensors",
        )
    reference = ManifestReference(secrets.token_hex(12), len(data), digest(data))
    files.append(manifest_file(reference.id))
    store.create(manifest_file(reference.id), data)
    return reference


@contextmanager
def _taken_back(store: Store) -> Iterator[list[str]]:
    """Files that no snapshot names: deleted if the save fails, so that a full disk does not stay full."""
    files: list[str] = []
    try:
        yield files
    except BaseException:
        _delete(store, files)
        raise


def _delete(store: Store, files: list[str]) -> None:
    for file in files:
        with contextlib.suppress(SafepointError):  # the error that led here is the one to tell
            store.delete(file)


def _parents_blocks(
    documents: Documents, parent: int | None, recheck: Recheck
) -> tuple[KnownBlocks | None, dict[str, PackDocument]]:
    """The parent's blocks, which may be used again, and their packs; none if they cannot be trusted."""
    if parent is None:
        return None, {}
    try:
        stored, packs = documents.stored(documents.snapshot(parent).manifest, number=parent)
    except SafepointError:
        return None, {}
    moved = documents.places.moved()
    packs = {**packs, **moved.packs}
    whole = {pack.id: pack.num_bytes for pack in packs.values() if _is_whole(documents.store, pack)}
    known = KnownBlocks.of(moved.located(stored.values()), whole, without=moved.damaged.keys(), chosen=recheck.begin)
    return known, dict(packs)


def _is_whole(store: Store, pack: PackDocument) -> bool:
    try:
        return store.size(pack_file(pack.id)) == pack.num_bytes
    except SafepointError:
        return False


def _check_newest(documents: Documents, expected: Expected, last: int | None) -> None:
    if expected not in {"any", last}:
        raise ConflictError(
            f"another writer saved into {documents.store.location} in between",
            expected="no snapshot yet" if expected is None else f"snapshot {expected} to be the newest",
            found="none" if last is None else f"snapshot {last}",
            hint="stop the other job, or resume() from its newest snapshot",
        )


def _commit(
    documents: Documents, draft: SnapshotDocument, last: int | None, expected: Expected, files: list[str]
) -> SnapshotDocument:
    """Create the snapshot's file under the next free number: the commit."""
    while True:
        number = 0 if last is None else last + 1
        document = msgspec.structs.replace(draft, number=number)
        try:
            # After this line the snapshot may be there whatever is raised: little is taken back any more.
            documents.store.create(snapshot_file(number), encode_sealed(document))
        except ExistsError:
            last = documents.newest()
            try:
                _check_newest(documents, expected, last)
            except ConflictError:
                _delete(documents.store, files)
                raise
            continue
        except StoreError as error:
            if error.errno in _NO_ROOM and not _is_there(documents, number):
                _delete(documents.store, files)  # else a full disk would stay full
            raise
        return document


def _is_there(documents: Documents, number: int) -> bool:
    """Whether a snapshot may be in the store."""
    try:
        return number in documents.numbers()
    except SafepointError:
        return True


def next_step(documents: Documents, parent: int | None) -> int:
    """The step after a parent's; 0 where a lineage starts."""
    if parent is None:
        return 0
    try:
        return documents.snapshot(parent).step + 1
    except CorruptionError:
        return parent + 1
