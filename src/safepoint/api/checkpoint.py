"""Checkpoint: a named group of live objects, saved and restored together."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, final

from safepoint.adapters import find
from safepoint.api.announce import logger
from safepoint.api.arguments import check_patterns, check_rules
from safepoint.api.collector import no_collection
from safepoint.api.plan import Options, Source, plan
from safepoint.api.report import Report
from safepoint.api.restore import apply
from safepoint.api.sources import GET_IT_AGAIN, FileSource, locate
from safepoint.api.tracked import capture_one, check_tracked, expand_all, is_immutable, scope_of
from safepoint.errors import CorruptionError, NotFoundError, SafepointError
from safepoint.formats import Contents
from safepoint.repository import Progress, Repository, Snapshot
from safepoint.tree import StateTree

_FRAMEWORKS = ("numpy", "torch", "tensorflow", "keras", "jax")


@final
class Checkpoint:
    """A named group of live objects whose whole state is saved and restored together.

    Args:
        **objects: name → model, optimizer, scheduler, loader, generator, anything with `state_dict` and
            `load_state_dict`, or dicts and lists of arrays and plain values (restored in place). Objects inside dicts
            and lists are tracked under their path: `optimizers={"g": a, "d": b}` → `optimizers/g`.

    Raises:
        UnsupportedError: an object cannot be captured (named by its path), or is a bare value: put it in a dict.
    """

    def __init__(self, *unnamed: Never, **objects: Any) -> None:
        if unnamed or not objects:
            raise TypeError("Checkpoint needs a name for what it saves, such as Checkpoint(model=model)")
        for name, obj in objects.items():
            check_tracked(name, obj)
        self._objects = dict(objects)
        self._immutable = {name for name, obj in objects.items() if is_immutable(obj)}

    def __repr__(self) -> str:
        tracked = ", ".join(f"{name}={type(obj).__name__}" for name, obj in self._objects.items())
        return f"Checkpoint({tracked})"

    def __getitem__(self, name: str) -> Any:
        """The tracked object; after a restore, the new value of an immutable tree.

        Raises:
            NotFoundError: nothing is tracked under that name.
        """
        try:
            return self._objects[name]
        except KeyError:
            raise NotFoundError(f"nothing is tracked as {name!r}", found=", ".join(self._objects)) from None

    @property
    def objects(self) -> Mapping[str, Any]:
        """Tracked name → live object."""
        return dict(self._objects)

    @property
    def immutable(self) -> frozenset[str]:
        """Names whose values must be passed at each save."""
        return frozenset(self._immutable)

    def update(self, values: Mapping[str, Any]) -> None:
        """Take the new values of the immutable trees; they are held until the next ones come.

        Raises:
            TypeError: one was left out, or a name is not tracked.
        """
        unknown = [name for name in values if name not in self._objects]
        if unknown:
            raise TypeError(f"save() got {unknown[0]!r}, which is not tracked; tracked: {', '.join(self._objects)}")
        left_out = [name for name in self._immutable if name not in values]
        if left_out:
            raise TypeError(f"save() needs the current value of {left_out[0]!r}: save({left_out[0]}={left_out[0]})")
        self._objects.update(values)

    @no_collection()
    def capture(self, values: Mapping[str, Any] | None = None) -> StateTree:
        """The live state of everything tracked; nothing is copied that can be viewed.

        Args:
            values: new values of the immutable trees.

        Raises:
            TypeError: an immutable tree was left out, or a name is not tracked.
            UnsupportedError: something cannot be captured; named by its path.
        """
        self.update(values or {})
        tracked = expand_all(self._objects)
        scope = scope_of(tracked)
        return StateTree.join({name: capture_one(name, obj, scope) for name, obj in tracked.items()})

    def expected_bytes(self) -> int:
        """About how large a save will be once training has begun; 0 where that cannot be told yet."""
        tracked = expand_all(self._objects)
        scope = scope_of(tracked)
        try:
            trees = [capture_one(name, obj, scope) for name, obj in tracked.items()]
        except SafepointError:  # not built yet
            return 0
        now = sum(tensor.spec.num_bytes for tree in trees for tensor in tree.tensors.values())
        hooks = ((getattr(find(obj), "to_come", None), obj) for obj in tracked.values())
        return now + sum(int(to_come(obj)) for to_come, obj in hooks if to_come is not None)

    @no_collection()
    def save(
        self,
        directory: str | os.PathLike[str] | Repository,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        progress: Progress | None = None,
        **values: Any,
    ) -> Snapshot:
        """Save a snapshot; when it returns, it is durable. Again and again adds snapshots.

        Args:
            directory: of the repository; made on first use.
            step: that is finished; by default one more than the newest snapshot's.
            metrics: name → number.
            tags: names for the snapshot; tagged snapshots are never pruned.
            progress: called with (bytes done, bytes in all).
            **values: new values of immutable trees, by tracked name.

        Raises:
            StoreError: disk full or failing. Like a crash, it leaves the old history as it was.
            ExistsError: the folder holds something else, or a tag is taken.
            NotFoundError: the path is a file, or no path.
            UnsupportedError: something cannot be captured; named by its path.
        """
        started = time.perf_counter()
        repository = _repository(directory)
        snapshot = repository.commit(
            self.capture(values), step=step, metrics=metrics, tags=tags, environment=environment(), progress=progress
        )
        log_saved(repository, snapshot, time.perf_counter() - started)
        return snapshot

    @no_collection()
    def restore(
        self,
        source: str | os.PathLike[str] | Repository,
        *,
        at: str | int = "latest",
        select: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        strict: bool = True,
        optional: Sequence[str] = (),
        cast: bool = False,
        in_place: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Put saved state into the live objects: all of it or, on any error, none.

        Args:
            source: whatever `safepoint.open` takes: a repository, `PATH@reference`, a whole-model file, or anyone's
                file. A file's top-level names are the tracked ones, or it is the only tracked object's.
            at: `latest`, `best`, `best:METRIC`, a step, `id:NUMBER` or a tag.
            select: globs of names; only these are restored.
            rename: regular expression → replacement, applied to saved names.
            strict: every difference inside a tracked name is an error; False restores what fits and reports the rest.
            optional: globs of live names that the snapshot may lack.
            cast: convert dtypes.
            in_place: read straight into live memory where possible: once, without staging, not all or nothing.
            progress: called with (bytes done, bytes in all).

        Raises:
            NotFoundError: no such repository or snapshot.
            MismatchError: one error that lists every difference; nothing was changed.
            CorruptionError: damage; nothing was changed.
            RestoreInterrupted: live objects may be incomplete.
        """
        options = Options(
            None if select is None else check_patterns("select", select),
            check_rules(rename),
            strict,
            check_patterns("optional", optional),
            cast,
            in_place,
        )
        found = locate(source, at)
        if isinstance(found, tuple):
            return self.restore_from(*found, options, progress=progress)
        try:
            path = str(source)
            return self._restore(FileSource(found, self._objects), options, path, path, None, progress)
        except CorruptionError as error:
            error.advise(GET_IT_AGAIN)
            raise
        finally:
            if isinstance(found, Contents):
                found.close()

    @no_collection()
    def restore_from(
        self,
        repository: Repository,
        at: str | int | Snapshot,
        options: Options,
        *,
        progress: Progress | None = None,
        view: Callable[[Source], Source] = lambda source: source,
    ) -> Report:
        """`restore` from an opened repository; `at` may be a snapshot, `view` a way to see its content."""
        started = time.perf_counter()
        try:
            snapshot = at if isinstance(at, Snapshot) else repository.resolve(at)
            with repository.reading():
                title = f"{repository.location}@{snapshot.step}"
                source = view(repository.manifest(snapshot))
                report = self._restore(source, options, repository.location, title, snapshot, progress)
        except CorruptionError as error:
            error.advise(
                f"`safepoint verify {repository.location}` lists all that is damaged; at= restores another snapshot, "
                "CheckpointManager.resume() the newest whole one"
            )
            raise
        logger.info("%s in %.2f s", report.summary, time.perf_counter() - started)
        return report

    def _restore(
        self,
        source: Source,
        options: Options,
        location: str,
        title: str,
        snapshot: Snapshot | None,
        progress: Progress | None,
    ) -> Report:
        tracked = expand_all(self._objects)
        todo = plan(tracked, source, options, title=title)
        restored = apply(todo, source, options, progress=progress)
        self._objects.update((name, obj) for name, obj in restored.items() if name in self._objects)
        found = todo.found
        reshaped = dict(found.reshaped)
        return Report(location, snapshot, tuple(todo.names), todo.missing, todo.ignored, reshaped, dict(found.retyped))


def environment() -> dict[str, str]:
    """Versions of Python, the system and the frameworks in use; imports nothing."""
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _FRAMEWORKS:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            versions[name] = str(version)
    return versions


def log_saved(repository: Repository, snapshot: Snapshot, seconds: float) -> None:
    """The one INFO line of a save."""
    logger.info(
        "saved step %d to %s: %d tensors, %d bytes, %d written, %.2f s",
        snapshot.step,
        repository.location,
        snapshot.num_tensors,
        snapshot.num_bytes,
        snapshot.written_bytes,
        seconds,
    )


def _repository(directory: str | os.PathLike[str] | Repository) -> Repository:
    return directory if isinstance(directory, Repository) else Repository(directory)
