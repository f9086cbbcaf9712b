"""The folder `moved/` of a repository: read when it changed, written when blocks are damaged, healed or moved.

Invariant: a document says everything about its pack, the highest k holds; who loses a k reads again and decides again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TypeAlias, final

from safepoint.errors import CorruptionError, ExistsError, NotFoundError, SafepointError
from safepoint.limits import MAX_DOCUMENT_BYTES
from safepoint.repository.features import check_features
from safepoint.repository.layout import moved_file, moved_numbers
from safepoint.repository.moved import Moved, Place, place_of
from safepoint.repository.schema import FORMAT_VERSION, MovedDocument, PackDocument, decode_sealed, encode_sealed
from safepoint.repository.stored import Block
from safepoint.repository.views import format_time
from safepoint.store import Store

Change: TypeAlias = Callable[[dict[Place, Place], dict[Place, str]], None]
"""Changes (where blocks of one pack are instead, those that are damaged there) as they shall be."""


@final
class Places:
    """Where the blocks of one repository are."""

    def __init__(self, store: Store, identity: Callable[[], str], clock: Callable[[], datetime]) -> None:
        self.store = store
        self._identity = identity
        self._clock = clock
        self._documents: dict[str, MovedDocument | CorruptionError] = {}
        self._key: frozenset[str] = frozenset()
        self._moved = Moved()

    def moved(self) -> Moved:
        """What `moved/` says now; the same object as long as it says the same."""
        numbers = self._numbers()
        if not numbers and not self._key:
            return self._moved
        newest: dict[str, MovedDocument] = {}
        unreadable: dict[str, CorruptionError] = {}
        for pack, ks in numbers.items():
            for k in sorted(ks, reverse=True):
                document = self._document(pack, k)
                if isinstance(document, MovedDocument):
                    newest[pack] = document
                    break
                unreadable[moved_file(pack, k)] = document
        key = frozenset(moved_file(pack, document.k) for pack, document in newest.items()) | unreadable.keys()
        if key != self._key:
            self._key, self._moved = key, Moved.of(newest, unreadable)
        return self._moved

    def mark_damaged(self, blocks: Iterable[Block]) -> None:
        """Write down that blocks are damaged where they are: no save refers to them, the next one heals them.

        Raises:
            StoreError: the place cannot be written.
        """
        known = self.moved().damaged
        by_pack: dict[str, dict[Place, str]] = {}
        for block in blocks:
            if place_of(block) not in known:
                by_pack.setdefault(block.pack, {})[place_of(block)] = block.digest
        for pack, found in by_pack.items():

            def add(onward: dict[Place, Place], damaged: dict[Place, str], found: Mapping[Place, str] = found) -> None:
                # One that was moved meanwhile is somebody else's good block by now.
                damaged.update((place, digest) for place, digest in found.items() if place not in onward)

            self._decide(pack, add, {})

    def mark_right(self, places: Iterable[Place]) -> None:
        """Write down that blocks are what they should be where they are: no more damaged, no more elsewhere."""
        now = self.moved()
        by_pack: dict[str, list[Place]] = {}
        for place in places:
            if place in now.damaged or place in now.onward:
                by_pack.setdefault(place[0], []).append(place)
        for pack, right in by_pack.items():

            def remove(
                onward: dict[Place, Place], damaged: dict[Place, str], right: Iterable[Place] = tuple(right)
            ) -> None:
                for place in right:
                    onward.pop(place, None)
                    damaged.pop(place, None)

            self._decide(pack, remove, {})

    def move(self, moves: Mapping[Place, Place], packs: Mapping[str, PackDocument]) -> None:
        """Write down where blocks are instead; the caller holds the shared lock, and has read them there.

        Args:
            moves: old place → new one, at which nothing moves on.
            packs: that the new places are in.
        """
        self.mark_right(moves.values())  # first: two places must not name each other
        by_pack: dict[str, dict[Place, Place]] = {}
        for old, new in moves.items():
            by_pack.setdefault(old[0], {})[old] = new
        for pack, new_places in by_pack.items():

            def add(
                onward: dict[Place, Place], damaged: dict[Place, str], new_places: Mapping[Place, Place] = new_places
            ) -> None:
                for old, new in new_places.items():
                    if old not in onward or old in damaged:
                        onward[old] = new
                    damaged.pop(old, None)

            self._decide(pack, add, packs)

    def restate(self, file: str) -> None:
        """Write down once more what holds about a pack, above a document that cannot be read."""
        about = moved_numbers(file.removeprefix("moved/"))
        if about is not None and file in self.moved().unreadable:
            self._decide(about[0], lambda _onward, _damaged: None, {}, anyway=True)

    def _decide(self, pack: str, change: Change, packs: Mapping[str, PackDocument], *, anyway: bool = False) -> None:
        """Write the next document about a pack, if the change changes anything."""
        check_features(self.store)
        with self.store.lock(exclusive=False):
            while True:
                now = self.moved()
                old = now.newest.get(pack)
                before = {place: new for place, new in now.onward.items() if place[0] == pack}
                marked = {place: digest for place, digest in now.damaged.items() if place[0] == pack}
                onward, damaged = dict(before), dict(marked)
                change(onward, damaged)
                if (onward, damaged) == (before, marked) and not anyway:
                    return
                k = max(self._numbers().get(pack, []), default=-1) + 1
                known = {**({} if old is None else {p.id: p for p in old.packs}), **now.packs, **packs}
                try:
                    self.store.create(moved_file(pack, k), encode_sealed(self._build(pack, k, onward, damaged, known)))
                except ExistsError:
                    continue
                return

    def _build(
        self,
        pack: str,
        k: int,
        onward: Mapping[Place, Place],
        damaged: Mapping[Place, str],
        known: Mapping[str, PackDocument],
    ) -> MovedDocument:
        used = list(dict.fromkeys(target for _, (target, _, _) in sorted(onward.items())))
        index = {target: position for position, target in enumerate(used)}
        return MovedDocument(
            version=FORMAT_VERSION,
            repository=self._identity(),
            pack=pack,
            k=k,
            time=format_time(self._clock()),
            packs=[known[target] for target in used],
            blocks=[(old[1], old[2], index[new[0]], new[1]) for old, new in sorted(onward.items())],
            damaged=[(place[1], place[2], digest) for place, digest in sorted(damaged.items())],
        )

    def _numbers(self) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for name in self.store.list("moved"):
            found = moved_numbers(name)
            if found is not None:
                numbers.setdefault(found[0], []).append(found[1])
        return numbers

    def _document(self, pack: str, k: int) -> MovedDocument | CorruptionError:
        file = moved_file(pack, k)
        if file not in self._documents:
            try:
                document = decode_sealed(self.store.read(file, at_most=MAX_DOCUMENT_BYTES), MovedDocument, file=file)
                self._documents[file] = _checked(document, (self._identity(), pack, k), file)
            except CorruptionError as error:
                self._documents[file] = error
            except NotFoundError:  # collected since it was listed
                return CorruptionError(f"{file} is missing", file=file, expected=file, found="no such file")
        return self._documents[file]


def _checked(document: MovedDocument, expected: tuple[str, str, int], file: str) -> MovedDocument:
    if (document.repository, document.pack, document.k) != expected:
        raise CorruptionError(
            f"{file} belongs elsewhere",
            file=file,
            expected=f"document {expected[2]} about pack {expected[1]} of {expected[0]}",
            found=f"document {document.k} about pack {document.pack} of {document.repository}",
        )
    for _, length, index, there in document.blocks:
        if index >= len(document.packs) or there + length > document.packs[index].num_bytes:
            raise CorruptionError(f"{file} is damaged: it moves a block out of its pack", file=file)
    return document


def told(action: Callable[[], object]) -> None:
    """Do what helps later saves, where it can be done: a place that cannot be written is no reason to fail."""
    with contextlib.suppress(SafepointError):
        action()
