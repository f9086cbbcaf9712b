"""Repository: snapshots on a store. Each save writes packs, then a manifest, then the snapshot, which is the commit.

Invariant: what is named by a committed snapshot is durable before the snapshot is; a crash at any point leaves the old
history, or the old history plus one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, final

from safepoint.errors import (
    ConflictError,
    CorruptionError,
    ExistsError,
    NotFoundError,
    SafepointError,
    UnsupportedError,
)
from safepoint.repository import collect as _collect
from safepoint.repository import history as _history
from safepoint.repository import verify as _verify
from safepoint.repository.asked import check_metrics, check_step, check_tags
from safepoint.repository.commit import found_repository, next_step, write_snapshot
from safepoint.repository.compact import Compaction, move_live_blocks
from safepoint.repository.config import encode_config, encode_metrics
from safepoint.repository.documents import Documents
from safepoint.repository.features import check_features
from safepoint.repository.healing import heal_from
from safepoint.repository.history import Snapshot
from safepoint.repository.manifest import Manifest
from safepoint.repository.marks import abandon, decide, decide_if_possible
from safepoint.repository.repair import Repair, repair
from safepoint.repository.schema import FORMAT_VERSION, ManifestReference, SnapshotDocument, TotalsDocument
from safepoint.repository.signing import check_snapshot, sign_snapshot
from safepoint.repository.stored import Progress
from safepoint.repository.survey import survey
from safepoint.repository.views import format_time, view
from safepoint.store import LocalStore, Store
from safepoint.tree import StateTree, Tensor, notebook_table

_ROWS = 50  # of a notebook's table


class Retention(Protocol):
    """What to keep, as a pure function of history; see `safepoint.Latest`, `Best`, `EveryNth`, `Within`."""

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """Numbers of the snapshots to keep."""
        ...


@final
class Repository:
    """The snapshots of a run: look, tag, add metrics, delete, prune, collect, verify.

    Opening reads nothing; a repository comes into being with its first save.

    Args:
        path: a local folder, or a `Store`.
        clock: current aware UTC time; for tests.
    """

    def __init__(
        self, path: str | os.PathLike[str] | Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        if not isinstance(path, str | os.PathLike) and not hasattr(path, "location"):
            raise TypeError(f"a repository is at a path, which {path!r} is not: Repository('runs/digits')")
        self._store: Store = LocalStore(path) if isinstance(path, str | os.PathLike) else path
        self._clock = clock
        self._documents = Documents(self._store, clock)

    def __repr__(self) -> str:
        return f"Repository({self.location!r})"

    def _repr_html_(self) -> str:
        try:
            snapshots = self.snapshots
        except SafepointError as error:  # a notebook shows what it has
            return notebook_table(f"{self!r}: {error.message}", (), ())
        rows = [
            (s.number, s.step, s.time.isoformat(sep=" ", timespec="seconds"), s.metrics_in_words, ", ".join(s.tags))
            for s in snapshots[-_ROWS:]
        ]
        columns = ("number", "step", "time", "metrics", "tags")
        return notebook_table(repr(self), columns, rows, more=max(0, len(snapshots) - _ROWS))

    @property
    def location(self) -> str:
        """Where it is."""
        return self._store.location

    @property
    def store(self) -> Store:
        """The store under it."""
        return self._store

    @property
    def id(self) -> str:
        """The repository's random id.

        Raises:
            NotFoundError: there is no repository here.
        """
        return self._documents.id

    @property
    def exists(self) -> bool:
        """Whether there is a repository here."""
        return self._documents.exists()

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def snapshots(self) -> list[Snapshot]:
        """All committed snapshots, oldest first, without pruned ones.

        Raises:
            NotFoundError: there is no repository here.
            CorruptionError: a snapshot or mark is damaged.
        """
        snapshots, damaged = self.history()
        for error in damaged.values():
            raise error
        return [snapshot for snapshot in snapshots.values() if not snapshot.pruned]

    def history(self) -> tuple[dict[int, Snapshot], dict[int, CorruptionError]]:
        """Every readable snapshot by number, pruned ones included, and what is wrong with the others."""
        return self._documents.history()

    def resolve(self, reference: str | int = "latest") -> Snapshot:
        """The snapshot that a reference names: `latest`, `best`, `best:METRIC`, a step, `id:NUMBER` or a tag.

        Raises:
            NotFoundError: there is none.
            CorruptionError: the newest snapshot's file is damaged, so that its lineage is not known, or the one asked
                for is: an explicit reference never falls back.
        """
        snapshots, damaged = self.history()
        asked = str(reference)
        if asked.startswith("id:") and asked[3:].isascii() and asked[3:].isdigit() and int(asked[3:]) in damaged:
            raise damaged[int(asked[3:])]
        newest = max((*snapshots, *damaged), default=None)
        if newest in damaged and not asked.startswith("id:") and not _history.find_tagged(snapshots, asked):
            raise damaged[newest]
        return _history.resolve(snapshots, reference, location=self.location)

    def manifest(self, snapshot: Snapshot) -> Manifest:
        """What a snapshot contains, its digest checked.

        Raises:
            CorruptionError: the manifest is missing or damaged.
        """
        return self._documents.manifest(snapshot.manifest, number=snapshot.number)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds off collection while a snapshot is being read."""
        with self._store.lock(exclusive=False):
            yield

    # -- saving ----------------------------------------------------------------------------------------------------

    def commit(
        self,
        tree: StateTree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        config: Any = None,
        tags: Sequence[str] = (),
        parent: int | Literal["newest"] | None = "newest",
        newest: int | Literal["any"] | None = "any",
        environment: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Snapshot:
        """Save a tree as a new snapshot; durable when it returns.

        Args:
            tree: what to save; read on this thread.
            step: that is finished; None counts on from the parent.
            metrics: name → number.
            config: plain nested values.
            tags: that name the new snapshot.
            parent: number of the snapshot it continues, None for a new lineage, or whatever is the newest.
            newest: what must still be the newest number in the repository (None: nothing yet), or anything.
            environment: see `Snapshot`.
            progress: see `Progress`.

        Raises:
            ConflictError: another writer committed since `newest`.
            ExistsError: a tag is taken, or the folder holds something else.
            StoreError: disk full or failing; what was committed before is untouched.
        """
        tags = list(check_tags(tags))
        encoded_metrics = encode_metrics(check_metrics(metrics))
        encoded_config = encode_config(config)
        step = None if step is None else check_step(step)
        found_repository(self._documents)
        with self.reading():
            last = self._documents.newest()
            if parent == "newest":
                parent = last
            self._check_tags(tags)
            draft = SnapshotDocument(
                version=FORMAT_VERSION,
                repository=self.id,
                number=-1,
                parent=parent,
                step=next_step(self._documents, parent) if step is None else step,
                time=format_time(self._clock()),
                metrics=encoded_metrics,
                config=encoded_config,
                tags=tags,
                manifest=ManifestReference("", 0, ""),
                totals=TotalsDocument(0, 0, 0),
                environment=dict(environment or {}),
            )
            document = write_snapshot(self._documents, tree, draft, last=last, expected=newest, progress=progress)
            return view(document, None)

    # -- deciding --------------------------------------------------------------------------------------------------

    def tag(self, reference: str | int, name: str) -> Snapshot:
        """Give a snapshot a name; tagged snapshots are never pruned.

        Raises:
            ExistsError: another snapshot has that tag.
        """
        _history.check_tag(name)
        snapshot = self.resolve(reference)
        if name in snapshot.tags:
            return snapshot
        self._check_tags([name])

        def add(old: Snapshot) -> Snapshot:
            if old.pruned:
                raise NotFoundError(f"snapshot {old.number} was pruned meanwhile")
            return replace(old, tags=(*(tag for tag in old.tags if tag != name), name))

        tagged = self._decide(snapshot.number, add)
        others = [s for s in _history.find_tagged(self.history()[0], name) if s.number != snapshot.number]
        if others:  # two of us at once: rather no tag than one that means two snapshots
            self._decide(snapshot.number, lambda old: replace(old, tags=tuple(t for t in old.tags if t != name)))
            raise ExistsError(f"tag {name!r} was given to snapshot {others[0].number} at the same time")
        return tagged

    def untag(self, name: str) -> Snapshot:
        """Take a tag away.

        Raises:
            NotFoundError: no snapshot has it.
        """
        snapshot = self.resolve(_history.check_tag(name))
        return self._decide(snapshot.number, lambda old: replace(old, tags=tuple(t for t in old.tags if t != name)))

    def add_metrics(self, reference: str | int, metrics: Mapping[str, Any]) -> Snapshot:
        """Add metrics that became known after the save."""
        late = check_metrics(metrics)
        snapshot = self.resolve(reference)
        return self._decide(snapshot.number, lambda old: replace(old, metrics={**old.metrics, **late}))

    def sign(self, reference: str | int, key: bytes) -> Snapshot:
        """Sign a snapshot, and through digests every byte of it; valid for as long as it is there.

        Args:
            reference: of the snapshot.
            key: a private Ed25519 key, PEM without a password.

        Raises:
            UnsupportedError: that is no such key, or `safepoint[sign]` is not installed.
        """
        snapshot = self.resolve(reference)
        signature = sign_snapshot(self._documents, snapshot, key)

        def add(old: Snapshot) -> Snapshot:
            others = tuple(other for other in old.signatures if other[0] != signature[0])
            return replace(old, signatures=(*others, signature))

        return self._decide(snapshot.number, add)

    def check_signature(self, reference: str | int, key: bytes) -> str:
        """Whether a snapshot is signed with the private half of `key`, a public Ed25519 key in PEM.

        This reads the snapshot's document; `verify` compares its bytes with the digests that are signed.

        Returns:
            The key, hexadecimal.

        Raises:
            UntrustedError: it is not, or was changed since.
            UnsupportedError: that is no such key, or `safepoint[sign]` is not installed.
        """
        return check_snapshot(self._documents, self.resolve(reference), key)

    def delete(self, reference: str | int) -> Snapshot:
        """Give one snapshot up; `collect` frees its space.

        Raises:
            UnsupportedError: it is tagged, the newest, or the newest verified one.
        """
        return self._decide(self.resolve(reference).number, self._give_up)

    def abandon(self, number: int) -> None:
        """Give up a snapshot whose own file or mark is damaged or lost, so that collection can go on without it.

        Raises:
            NotFoundError: it is none of the damaged ones; a readable one is deleted.
        """
        _, damaged = self._documents.history(gaps=True)
        if number not in damaged:
            raise NotFoundError(f"snapshot {number} of {self.location} is not damaged", hint=f"delete id:{number}")
        abandon(self._documents, number, clock=self._clock)

    def prune(self, keep: Sequence[Retention], *, dry_run: bool = True) -> list[Snapshot]:
        """Give up what no policy keeps, in the newest lineage; `collect` frees the space.

        Args:
            keep: policies, any of which suffices; an empty list keeps everything.
            dry_run: only tell.

        Returns:
            The snapshots that are (or would be) given up, oldest first.
        """
        snapshots, _ = self.history()
        doomed = _collect.choose(snapshots, keep, self._clock())
        if dry_run:
            return doomed

        def give_up(old: Snapshot) -> Snapshot | None:
            """One that was tagged meanwhile stays."""
            return (
                None if old.number in _collect.protected({**snapshots, old.number: old}) else replace(old, pruned=True)
            )

        pruned = []
        for snapshot in doomed:
            now = decide(self._documents, snapshot.number, give_up, clock=self._clock, known=snapshot.mark)
            pruned += [] if now is None else [now]
        return pruned

    def collect(self) -> int:
        """Delete what no unpruned snapshot needs; returns the bytes freed.

        Takes the exclusive lock without waiting. If it cannot read every snapshot and manifest, it deletes nothing.

        Raises:
            ConflictError: a save or restore is running; try again later.
            CorruptionError: something cannot be read; nothing was deleted.
        """
        _ = self.id
        check_features(self._store)
        with self._store.lock(exclusive=True, wait=False):
            snapshots, damaged = self._documents.history(gaps=True)
            for number, error in damaged.items():
                raise CorruptionError(
                    f"nothing was deleted: {error.message}",
                    file=error.file,
                    expected=error.expected,
                    found=error.found,
                    hint=f"put the file back from a copy, or give it up: safepoint delete {self.location}@id:{number}",
                )
            there = [snapshot for snapshot in snapshots.values() if not snapshot.pruned]
            try:
                needed = survey(self._documents, there, strict=True)
            except CorruptionError as error:
                raise CorruptionError(
                    f"nothing was deleted: {error.message}",
                    file=error.file,
                    expected=error.expected,
                    found=error.found,
                    hint=f"put the file back from a copy, or: safepoint repair {self.location}",
                ) from error
            newest = self._documents.places.moved().newest
            return _collect.sweep(
                self._store,
                manifests={s.manifest.id for s in there},
                packs={pack.id for pack in needed.packs},
                moved={pack: newest[pack].k for pack in needed.passed},
            )

    def compact(self, *, progress: Progress | None = None) -> Compaction:
        """Write what is alive in packs of which most is dead to new ones, and free the old ones' space.

        Saves, restores and signatures do not notice. A crash leaves every snapshot as it was.

        Raises:
            CorruptionError: something is damaged; nothing is lost by trying.
            StoreError: the store refused; nothing is lost.
        """
        check_features(self._store)
        with self.reading():
            packs, moved_bytes = move_live_blocks(self._documents, self.snapshots, progress)
        freed: int | None = 0
        if packs:
            try:
                freed = self.collect()
            except ConflictError:  # a save or restore is running: the next collection does it
                freed = None
        return Compaction(packs, moved_bytes, freed)

    def repair(self, *, progress: Progress | None = None) -> Repair:
        """Read every byte, set aside what is damaged, restore what other packs hold, and tell what is lost.

        Deletes nothing. A block that nothing holds any more is restored by the next save that has its bytes.

        Raises:
            NotFoundError: there is no repository.
            StoreError: the store refused.
        """
        check_features(self._store)
        with self.reading():
            snapshots, damaged = self._documents.history(gaps=True)
            return repair(self._documents, snapshots, damaged, progress)

    def heal(self, snapshot: Snapshot, tensors: Iterable[Tensor]) -> bool:
        """Write damaged blocks of a snapshot again from live tensors that hold the same bytes: a frozen backbone does.

        Returns:
            Whether no block of it is damaged any more.

        Raises:
            StoreError: the store refused.
        """
        check_features(self._store)
        with self.reading():
            return heal_from(self._documents, snapshot, tensors)

    def verify(
        self, reference: str | int | None = None, *, sample: float | None = None, progress: Progress | None = None
    ) -> _verify.Verification:
        """Read every byte of one snapshot, or of all, and compare digests; marks what is whole as verified.

        Args:
            reference: of one snapshot; all by default.
            sample: read only this part of the bytes, drawn at random: 0.05 finds damage of a twentieth at each try.
            progress: see `Progress`.

        Returns:
            What was checked, and what is damaged: nothing is raised for damage.

        Raises:
            NotFoundError: there is no repository or snapshot.
        """
        if sample is not None and not 0 < sample <= 1:
            raise UnsupportedError(f"sample={sample!r}", expected="a part of the whole: above 0, at most 1")
        with self.reading():
            snapshots, damaged = self._documents.history(gaps=reference is None)
            if reference is None:
                chosen = [snapshot for snapshot in snapshots.values() if not snapshot.pruned]
            else:
                try:
                    chosen, damaged = [self.resolve(reference)], {}
                except CorruptionError as error:
                    chosen, damaged = [], {n: e for n, e in damaged.items() if e.file == error.file}
            result = _verify.verify(self._documents, chosen, damaged, progress, sample=sample)
        now = self._clock()
        for whole in result.whole:
            decide_if_possible(self._documents, whole, lambda old: replace(old, verified=now), clock=self._clock)
        broken = {n for damage in result.damage for n in damage.snapshots if n in snapshots and snapshots[n].verified}
        for damaged_one in sorted(broken):  # what was whole once is not what retention may rely on
            decide_if_possible(self._documents, damaged_one, lambda old: replace(old, verified=None), clock=self._clock)
        return result

    # -- inside ----------------------------------------------------------------------------------------------------

    def _decide(self, number: int, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
        decided = decide(self._documents, number, change, clock=self._clock)
        assert decided is not None
        return decided

    def _give_up(self, old: Snapshot) -> Snapshot:
        protected = _collect.protected({**self.history()[0], old.number: old})
        if old.number in protected:
            raise UnsupportedError(
                f"snapshot {old.number} cannot be deleted: it is {protected[old.number]}",
                hint="save another first" if protected[old.number].startswith("the newest") else "untag it first",
            )
        return replace(old, pruned=True)

    def _check_tags(self, tags: Sequence[str]) -> None:
        snapshots = self.history()[0] if tags else {}
        for tag in tags:
            if taken := _history.find_tagged(snapshots, tag):
                raise ExistsError(f"tag {tag!r} names snapshot {taken[0].number} already", hint=f"untag({tag!r}) first")
