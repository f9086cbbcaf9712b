"""Retention and collection: what may go, and deleting it.

Invariant: the newest snapshot, the newest verified one and tagged ones always stay; a file is deleted only under the
exclusive lock, when every unpruned snapshot and manifest was read and none needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import TYPE_CHECKING

from safepoint.errors import NotFoundError
from safepoint.repository.history import Snapshot, lineage
from safepoint.repository.layout import manifest_file, manifest_id, moved_file, moved_numbers, pack_file, pack_id

if TYPE_CHECKING:
    from safepoint.repository.repository import Retention
    from safepoint.store import Store


def protected(snapshots: Mapping[int, Snapshot]) -> dict[int, str]:
    """Number → why, of the snapshots that are never pruned."""
    there = [snapshot for snapshot in snapshots.values() if not snapshot.pruned]
    newest = max((snapshot.number for snapshot in there), default=None)
    whole = max((snapshot.number for snapshot in there if snapshot.verified is not None), default=None)
    reasons: dict[int, str] = {}
    for snapshot in there:
        why = ["the newest"] if snapshot.number == newest else []
        why += ["the newest verified one"] if snapshot.number == whole else []
        why += [f"tagged {', '.join(snapshot.tags)}"] if snapshot.tags else []
        if why:
            reasons[snapshot.number] = " and ".join(why)
    return reasons


def choose(snapshots: Mapping[int, Snapshot], keep: Sequence[Retention], now: datetime) -> list[Snapshot]:
    """The unpruned snapshots of the newest lineage that neither a policy nor `protected` keeps, oldest first."""
    line = [snapshot for snapshot in lineage(snapshots) if not snapshot.pruned]
    if not keep:
        return []
    kept = set(protected(snapshots)).union(*(policy.keep(line, now) for policy in keep))
    return [snapshot for snapshot in line if snapshot.number not in kept]


def sweep(
    store: Store, *, manifests: AbstractSet[str], packs: AbstractSet[str], moved: Mapping[str, int] | None = None
) -> int:
    """Delete every manifest and pack not named, and what dead writers left; returns the bytes freed.

    Of `moved/`, what is about packs not in `moved` goes, and of others what is older than the number given there.

    Files with other names are nobody's business here, and stay.
    """
    freed = store.clean()  # first: it makes durable the marks because of which files are deleted
    doomed = [
        manifest_file(name) for name in map(manifest_id, store.list("manifests")) if name and name not in manifests
    ]
    doomed += [pack_file(name) for name in map(pack_id, store.list("packs")) if name and name not in packs]
    for name in store.list("moved"):
        about = moved_numbers(name)
        if about is not None and about[1] < (moved or {}).get(about[0], about[1] + 1):
            doomed.append(moved_file(*about))
    for file in doomed:
        with contextlib.suppress(NotFoundError):
            freed += store.size(file)
        store.delete(file)
    return freed
