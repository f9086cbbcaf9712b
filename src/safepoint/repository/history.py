"""History: committed snapshots with their marks, lineages, references. Pure functions over frozen data.

Invariant: a lineage follows parents back from the newest snapshot; nothing here reads or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, final

from safepoint.errors import NotFoundError, UnsupportedError
from safepoint.limits import MAX_TAG_LENGTH
from safepoint.repository.schema import ManifestReference
from safepoint.tree import notebook_table

Mode: TypeAlias = Literal["auto", "min", "max"]
"""Which values of a metric are better: smaller, greater, or as its name says."""

_SMALLER_IS_BETTER = ("loss", "error", "err", "mse", "mae", "rmse", "perplexity", "ppl", "nll", "wer", "cer", "fid")


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """One committed checkpoint, with what was marked about it later.

    Attributes:
        number: in the repository, counted from 0 in order of commits; never used again.
        step: that was finished when it was saved.
        time: of the commit, aware UTC.
        metrics: name → value, those added later included.
        config: what the caller gave as `config=`.
        parent: number of the snapshot it continues, or None.
        tags: that name it.
        pruned: whether it was given up; its content may be gone.
        verified: time of the last full verification that passed, or None.
        num_tensors: in it.
        num_bytes: of all its tensors.
        written_bytes: that its save had to write; the rest was there already.
        environment: versions of Python and of the frameworks that were in use.
        signatures: (public Ed25519 key, signature), hexadecimal; claims, until `Repository.check_signature` looks.
    """

    number: int
    step: int
    time: datetime
    metrics: Mapping[str, float]
    config: Any
    parent: int | None
    tags: tuple[str, ...]
    pruned: bool
    verified: datetime | None
    num_tensors: int
    num_bytes: int
    written_bytes: int
    environment: Mapping[str, str]
    manifest: ManifestReference
    mark: int = -1
    signatures: tuple[tuple[str, str], ...] = ()

    @property
    def metrics_in_words(self) -> str:
        """`loss 0.25, accuracy 0.9`."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())

    def __repr__(self) -> str:
        words = ", ".join(filter(None, [f"step {self.step}", self.metrics_in_words, *self.tags]))
        return f"<snapshot {self.number}: {words}, {self.num_tensors} tensors, {self.num_bytes:,} bytes>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("time", self.time.isoformat(sep=" ", timespec="seconds")),
            ("parent", self.parent),
            *self.metrics.items(),
            ("tags", ", ".join(self.tags)),
            ("tensors", f"{self.num_tensors:,}, {self.num_bytes:,} bytes, {self.written_bytes:,} of them new"),
            ("config", self.config),
            ("environment", ", ".join(f"{name} {version}" for name, version in self.environment.items())),
            ("verified", self.verified or "never"),
            ("pruned", "yes" if self.pruned else None),
        ]
        shown = [(word, content) for word, content in rows if content is not None and content != ""]
        return notebook_table(f"snapshot {self.number}, step {self.step}", ("", ""), shown)

    @staticmethod
    def expected(step: int, time: datetime, metrics: Mapping[str, float]) -> Snapshot:
        """What a save on its way will look like to policies; it has no number yet (-1)."""
        nothing = ManifestReference("", 0, "")
        return Snapshot(
            number=-1, step=step, time=time, metrics=metrics, config=None, parent=None, tags=(), pruned=False,
            verified=None, num_tensors=0, num_bytes=0, written_bytes=0, environment={}, manifest=nothing,
        )  # fmt: skip


def lineage(snapshots: Mapping[int, Snapshot], head: int | None = None) -> list[Snapshot]:
    """The snapshots that lead to `head` (default: the newest), oldest first, pruned ones included."""
    number = max(snapshots, default=None) if head is None else head
    found: list[Snapshot] = []
    while number is not None and number in snapshots and (not found or number < found[-1].number):
        found.append(snapshots[number])
        number = snapshots[number].parent
    return found[::-1]


def direction(metric: str, mode: Mode = "auto") -> Literal["min", "max"]:
    """Whether smaller or greater is better; "auto" goes by the metric's name, as Keras' callbacks do.

    Raises:
        UnsupportedError: `mode` is none of the three.
    """
    if mode == "auto":
        words = metric.lower().replace("-", "_").split("_")
        return "min" if any(word in _SMALLER_IS_BETTER for word in words) or metric.endswith("loss") else "max"
    if mode not in {"min", "max"}:
        raise UnsupportedError(f"mode={mode!r}", expected="'auto', 'min' or 'max'")
    return mode


def ranked(snapshots: Iterable[Snapshot], metric: str, mode: Mode = "auto") -> list[Snapshot]:
    """Those that have the metric as a number, best first; of equals the older first."""
    sign = 1 if direction(metric, mode) == "min" else -1
    having = [s for s in snapshots if metric in s.metrics and not math.isnan(s.metrics[metric])]
    return sorted(having, key=lambda s: (sign * s.metrics[metric], s.number))


def first_metric(snapshots: Iterable[Snapshot]) -> str | None:
    """The first metric that a history saw, or None."""
    return next((name for snapshot in snapshots for name in snapshot.metrics), None)


def resolve(snapshots: Mapping[int, Snapshot], reference: str | int, *, location: str) -> Snapshot:
    """The snapshot that a reference names: `latest`, `best`, `best:METRIC`, a step, `id:NUMBER` or a tag.

    Raises:
        NotFoundError: none, or it was pruned; says what there is.
    """
    line = lineage(snapshots)
    there = [snapshot for snapshot in line if not snapshot.pruned]
    text = str(reference)
    if not snapshots:
        raise NotFoundError(f"{location} has no snapshot yet", hint="save one first")
    if text == "latest":
        found = there[-1:]
    elif text == "best" or text.startswith("best:"):
        named, mode = _metric_of(text[5:])
        metric = named or first_metric(line)
        if metric is None:
            raise NotFoundError(f"{location}@best: no snapshot has a metric", hint="save(metrics={...}), or @latest")
        found = ranked(there, metric, mode)[:1]
    elif text.startswith("id:"):
        found = [s for s in snapshots.values() if text[3:] == str(s.number)]
    elif text.isascii() and text.isdigit():
        found = [s for s in line if s.step == int(text)][-1:]
    else:
        found = find_tagged(snapshots, text)
    if not found or found[0].pruned:
        raise NotFoundError(
            f"{location}@{text} was pruned" if found else f"no snapshot {location}@{text}",
            expected="latest, best, best:METRIC, a step, id:NUMBER or a tag",
            found=_what_is_there(there, snapshots),
            hint=f"`safepoint log {location}` lists them",
        )
    return found[0]


def find_tagged(snapshots: Mapping[int, Snapshot], tag: str) -> list[Snapshot]:
    """The unpruned snapshots that have a tag, newest first; more than one only after a race."""
    return [s for number, s in sorted(snapshots.items(), reverse=True) if tag in s.tags and not s.pruned]


def _metric_of(text: str) -> tuple[str, Mode]:
    """`METRIC`, `METRIC:min` or `METRIC:max`; without the last part its name decides."""
    name, _, mode = text.rpartition(":")
    if name and mode in {"min", "max"}:
        return name, "min" if mode == "min" else "max"
    return text, "auto"


def check_tag(tag: str) -> str:
    """`tag`, if it can be told from other references: not all digits, no reserved word, letters, digits, `._-`.

    Raises:
        UnsupportedError: it cannot.
    """
    plain = tag.replace("-", "").replace("_", "").replace(".", "").isalnum() and tag.isascii()
    if not plain or tag.isdigit() or tag in {"latest", "best"} or len(tag) > MAX_TAG_LENGTH:
        raise UnsupportedError(
            f"{tag!r} is not a tag",
            expected="letters, digits, dots, dashes, not all digits, not 'latest' or 'best', at most 100 characters",
        )
    return tag


def _what_is_there(there: Sequence[Snapshot], snapshots: Mapping[int, Snapshot]) -> str:
    steps = [str(snapshot.step) for snapshot in there]
    tags = sorted(tag for snapshot in snapshots.values() if not snapshot.pruned for tag in snapshot.tags)
    listed = ", ".join(steps if len(steps) <= 8 else [*steps[:3], "...", *steps[-4:]])
    metrics = sorted({metric for snapshot in there for metric in snapshot.metrics})
    return "; ".join(
        f"{word} {names}"
        for word, names in (("steps", listed or "none"), ("tags", ", ".join(tags)), ("metrics", ", ".join(metrics)))
        if names
    )
