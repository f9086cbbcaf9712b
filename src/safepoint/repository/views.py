"""Snapshots as users see them: what was committed, overlaid with what was marked later."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from safepoint.errors import CorruptionError, SafepointError
from safepoint.repository.config import decode_config, decode_metrics, encode_metrics
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import mark_file, snapshot_file
from safepoint.repository.schema import FORMAT_VERSION, MarkDocument, SnapshotDocument


def view(document: SnapshotDocument, mark: MarkDocument | None) -> Snapshot:
    """A snapshot with its newest mark.

    Raises:
        CorruptionError: a document has values that no writer writes.
    """
    snapshot = _committed(document)
    if mark is None:
        return snapshot
    try:
        return replace(
            snapshot,
            metrics={**snapshot.metrics, **decode_metrics(mark.metrics)},
            tags=tuple(mark.tags),
            pruned=mark.pruned,
            signatures=tuple(mark.signatures),
            verified=None if mark.verified is None else parse_time(mark.verified),
            mark=mark.k,
        )
    except (ValueError, SafepointError) as error:
        file = mark_file(mark.number, mark.k)
        raise CorruptionError(f"{file} is damaged", file=file, found=error) from error


def mark_of(snapshot: Snapshot, committed: SnapshotDocument, *, k: int, time: datetime) -> MarkDocument:
    """The mark that makes a snapshot look like `snapshot`."""
    given = decode_metrics(committed.metrics)
    late = {name: value for name, value in snapshot.metrics.items() if name not in given or given[name] != value}
    return MarkDocument(
        version=FORMAT_VERSION,
        repository=committed.repository,
        number=committed.number,
        k=k,
        time=format_time(time),
        tags=list(snapshot.tags),
        metrics=encode_metrics(late),
        verified=None if snapshot.verified is None else format_time(snapshot.verified),
        pruned=snapshot.pruned,
        signatures=list(snapshot.signatures),
    )


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def parse_time(text: str) -> datetime:
    """What `format_time` wrote.

    Raises:
        ValueError: it did not.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time.astimezone(UTC)


def _committed(document: SnapshotDocument) -> Snapshot:
    file = snapshot_file(document.number)
    if document.parent is not None and document.parent >= document.number:
        raise CorruptionError(f"{file} is damaged", file=file, found=f"parent {document.parent}")
    try:
        return Snapshot(
            number=document.number,
            step=document.step,
            time=parse_time(document.time),
            metrics=decode_metrics(document.metrics),
            config=decode_config(document.config),
            parent=document.parent,
            tags=tuple(document.tags),
            pruned=False,
            verified=None,
            num_tensors=document.totals.num_tensors,
            num_bytes=document.totals.num_bytes,
            written_bytes=document.totals.written_bytes,
            environment=document.environment,
            manifest=document.manifest,
        )
    except (ValueError, SafepointError) as error:
        raise CorruptionError(f"{file} is damaged", file=file, found=error) from error
