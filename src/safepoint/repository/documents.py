"""Reading what a repository says of itself: its id, snapshots, marks and manifests, each checked and read once.

Invariant: a document that is returned is whole, of this repository and of the number it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain, islice, pairwise
from typing import final

from safepoint.codec import digest
from safepoint.errors import CorruptionError, NotFoundError
from safepoint.limits import MAX_DOCUMENT_BYTES, MAX_MANIFEST_BYTES
from safepoint.repository.absent import no_repository
from safepoint.repository.derived import Derived
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import (
    FORMAT_FILE,
    manifest_file,
    mark_file,
    mark_numbers,
    snapshot_file,
    snapshot_number,
)
from safepoint.repository.manifest import Manifest, parse_document
from safepoint.repository.places import Places
from safepoint.repository.schema import (
    FormatDocument,
    ManifestDocument,
    ManifestReference,
    MarkDocument,
    PackDocument,
    SnapshotDocument,
    T,
    decode,
    decode_sealed,
)
from safepoint.repository.stored import Stored
from safepoint.repository.views import view
from safepoint.store import Store

_MOST_GAPS = 100  # told of at once: a stray name may be a large number


@final
class Documents:
    """The documents of one repository. They never change, so each is read once."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.store = store
        # Nothing here refers to `self`: what a manifest takes goes with it, without waiting for a collection.
        self._identity = cache(partial(_read_identity, store))
        self.places = Places(store, self._identity, clock)
        self.derived = Derived(store)
        self._newest: int | None = None
        # What was listed last, and what it means: names are only ever added, most of them at the end. Replaced as a
        # whole, so that threads do not see halves.
        self._numbers: tuple[list[str], list[int]] = ([], [])
        self._newest_marks: tuple[list[str], dict[int, int]] = ([], {})
        self._snapshots: dict[int, SnapshotDocument] = {}
        self._marks: dict[tuple[int, int], MarkDocument] = {}
        self._views: dict[tuple[int, int], Snapshot] = {}
        self._manifest: tuple[ManifestReference, Manifest] | None = None
        self._written: tuple[ManifestReference, Mapping[str, Stored], Mapping[str, PackDocument]] | None = None

    @property
    def id(self) -> str:
        """The repository's random id.

        Raises:
            NotFoundError: there is no repository here.
        """
        return self._identity()

    def exists(self) -> bool:
        """Whether there is a repository here."""
        try:
            return bool(self.id)
        except NotFoundError:
            return False

    def numbers(self) -> list[int]:
        """Of all committed snapshots, pruned ones included, in order."""
        names = self.store.list("snapshots")
        known, numbers = self._numbers
        start = len(known) if names[: len(known)] == known else 0
        new = [number for name in names[start:] if (number := snapshot_number(name)) is not None]
        numbers = sorted([*numbers, *new] if start else new)
        self._numbers = names, numbers
        return numbers.copy()

    def newest(self) -> int | None:
        """The highest of them. Numbers have no gaps, so from one that is known the names after it tell.

        Listing a thousand snapshots takes as long as a tenth of a small save.
        """
        if self._newest is None or not self._has(self._newest):
            self._newest = max(self.numbers(), default=None)
        else:
            while self._has(self._newest + 1):
                self._newest += 1
        return self._newest

    def newest_marks(self) -> dict[int, int]:
        """Number of the snapshot → k of its newest mark."""
        names = self.store.list("marks")
        known, marks = self._newest_marks
        start = len(known) if names[: len(known)] == known else 0
        marks = marks.copy() if start else {}
        for found in map(mark_numbers, names[start:]):
            if found is not None and marks.get(found[0], -1) < found[1]:
                marks[found[0]] = found[1]
        self._newest_marks = names, marks
        return marks.copy()

    def snapshot(self, number: int) -> SnapshotDocument:
        """A committed snapshot.

        Raises:
            CorruptionError: it is damaged, missing, or belongs elsewhere.
        """
        if number not in self._snapshots:
            file = snapshot_file(number)
            try:
                document = self._read(file, SnapshotDocument)
            except NotFoundError:
                raise _lost(file) from None
            _check_belongs(file, document, (self.id, number))
            self._snapshots[number] = document
        return self._snapshots[number]

    def mark(self, number: int, k: int) -> MarkDocument:
        """A mark of a snapshot.

        Raises:
            CorruptionError: it is damaged, missing, or belongs elsewhere.
        """
        if (number, k) not in self._marks:
            file = mark_file(number, k)
            try:
                document = self._read(file, MarkDocument)
            except NotFoundError:
                raise _lost(file) from None
            _check_belongs(file, document, (self.id, number))
            if document.k != k:
                raise CorruptionError(f"{file} belongs elsewhere", file=file, expected=k, found=document.k)
            self._marks[number, k] = document
        return self._marks[number, k]

    def view(self, number: int, k: int) -> Snapshot:
        """A snapshot as its mark `k` makes it, -1 for none."""
        if (number, k) not in self._views:
            self._views[number, k] = view(self.snapshot(number), self.mark(number, k) if k >= 0 else None)
        return self._views[number, k]

    def history(self, *, gaps: bool = False) -> tuple[dict[int, Snapshot], dict[int, CorruptionError]]:
        """Every readable snapshot by number, pruned ones included, and what is wrong with the others.

        Args:
            gaps: also tell of numbers that were committed, as later ones show, and have no file now; the first of them.
        """
        _ = self.id
        marks = self.newest_marks()
        snapshots: dict[int, Snapshot] = {}
        damaged: dict[int, CorruptionError] = {}
        numbers = self.numbers()
        for number in numbers:
            try:
                snapshots[number] = self.view(number, marks.get(number, -1))
            except CorruptionError as error:
                if not self._is_given_up(number, marks):
                    damaged[number] = error
        if gaps and numbers and len(numbers) <= numbers[-1]:
            lost = (n for n in _gaps(numbers) if not self._is_given_up(n, marks))
            damaged.update((n, _lost(snapshot_file(n))) for n in islice(lost, _MOST_GAPS))
        return snapshots, damaged

    def manifest(self, reference: ManifestReference, *, number: int) -> Manifest:
        """What snapshot `number` contains, its digest checked. The last one is kept.

        Raises:
            CorruptionError: the manifest is missing or damaged.
        """
        if self._manifest is not None and self._manifest[0] == reference:
            return self._manifest[1]
        file = manifest_file(reference.id)
        try:
            data = self.store.read(file, at_most=min(reference.num_bytes, MAX_MANIFEST_BYTES))
        except NotFoundError:
            raise CorruptionError(
                f"snapshot {number} has lost its manifest", file=file, expected=file, found="no such file"
            ) from None
        if (found := digest(data)) != reference.digest:
            raise CorruptionError(f"{file} is damaged", file=file, expected=f"digest {reference.digest}", found=found)
        manifest = parse_document(
            decode(data, ManifestDocument, file=file), self.places, derived=self.derived, file=file
        )
        self._manifest = (reference, manifest)
        return manifest

    def stored(
        self, reference: ManifestReference, *, number: int
    ) -> tuple[Mapping[str, Stored], Mapping[str, PackDocument]]:
        """Tensors and packs of snapshot `number`; of one that was just saved without reading it again."""
        if self._written is not None and self._written[0] == reference:
            return self._written[1:]
        manifest = self.manifest(reference, number=number)
        return manifest.stored, manifest.packs

    def keep(
        self, reference: ManifestReference, stored: Mapping[str, Stored], packs: Mapping[str, PackDocument]
    ) -> None:
        """Remember what was just saved: the next save will ask."""
        self._written = (reference, stored, packs)

    def _has(self, number: int) -> bool:
        try:
            self.store.size(snapshot_file(number))
        except NotFoundError:
            return False
        except CorruptionError:  # something else has its name
            return True
        return True

    def _is_given_up(self, number: int, marks: dict[int, int]) -> bool:
        """Whether a damaged snapshot was deleted, so that nobody misses it."""
        try:
            return number in marks and self.mark(number, marks[number]).pruned
        except CorruptionError:
            return False

    def _read(self, file: str, kind: type[T]) -> T:
        return _read_sealed(self.store, file, kind)


def _read_identity(store: Store) -> str:
    try:
        return _read_sealed(store, FORMAT_FILE, FormatDocument).id
    except NotFoundError:
        raise no_repository(store) from None


def _read_sealed(store: Store, file: str, kind: type[T]) -> T:
    return decode_sealed(store.read(file, at_most=MAX_DOCUMENT_BYTES), kind, file=file)


def _gaps(numbers: list[int]) -> Iterator[int]:
    """The numbers between those of a sorted list, and before it."""
    return chain.from_iterable(range(before + 1, after) for before, after in pairwise([-1, *numbers]))


def _lost(file: str) -> CorruptionError:
    return CorruptionError(f"{file} is missing", file=file, expected=file, found="no such file")


def _check_belongs(file: str, document: SnapshotDocument | MarkDocument, expected: tuple[str, int]) -> None:
    if (document.repository, document.number) != expected:
        raise CorruptionError(
            f"{file} belongs elsewhere",
            file=file,
            expected=f"snapshot {expected[1]} of {expected[0]}",
            found=f"snapshot {document.number} of {document.repository}",
        )
