"""What a restore will do: live objects matched with a saved tree, completely, before a byte is read.

Invariant: nothing here reads a tensor or changes an object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safepoint.adapters import Adapter, Scope
from safepoint.api.tracked import RESERVED, adapter_of, scope_of
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.repository import Before, Progress
from safepoint.tree import (
    Branch,
    Leaf,
    LeafRef,
    Match,
    Node,
    StateTree,
    Tensor,
    TensorSpec,
    join_name,
    match,
    matches,
    rename,
    select,
)


class Source(Protocol):
    """Where a saved tree comes from: a manifest or a whole-model file."""

    @property
    def tree(self) -> StateTree:
        """What was saved."""
        ...

    def load(
        self,
        names: Iterable[str],
        *,
        into: Mapping[str, NDArray[np.uint8]] | None = None,
        before: Before | None = None,
        past_cache: bool = False,
        progress: Progress | None = None,
    ) -> StateTree:
        """Leaves, read and verified: into the memory given, each part told to `before`, or staged.

        `past_cache`: nobody will read these bytes soon again.
        """
        ...

    def waits(self, names: Iterable[str]) -> bool:
        """Whether reading tensors would wait for a disk."""
        ...

    def check(self, names: Iterable[str], *, progress: Progress | None = None) -> None:
        """Read and verify tensors, and keep nothing."""
        ...

    def stream(self, names: Iterable[str], *, progress: Progress | None = None) -> Mapping[str, Tensor]:
        """Tensors that are read and verified when they are asked for."""
        ...

    def same(self, first: str, second: str) -> bool:
        """Whether two saved tensors have the same bytes."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Options:
    """How to restore; see `Checkpoint.restore`."""

    select: Sequence[str] | None = None
    rename: Mapping[str, str] | None = None
    strict: bool = True
    optional: Sequence[str] = ()
    cast: bool = False
    in_place: bool = False
    keep_live: Sequence[str] = ()


@final
@dataclass(slots=True)
class Plan:
    """What a restore will do: made by `plan`, which changes nothing; done by `apply`."""

    objects: dict[str, Any]
    scope: Scope
    saved: StateTree
    names: dict[str, str]  # live name → name in the source
    templates: dict[str, StateTree]
    found: Match
    ignored: tuple[str, ...]
    missing: tuple[str, ...] = field(default=())


def plan(objects: Mapping[str, Any], source: Source, options: Options, *, title: str) -> Plan:
    """Match the tracked objects with a saved tree, completely, before a byte is read.

    Args:
        objects: tracked name → live object, expanded.
        source: what was saved; its names are full (`model/w`).
        options: how.
        title: what to call the source in errors.

    Raises:
        MismatchError: one error that lists every difference; nothing was changed.
    """
    saved, origin = _renamed(source.tree, options.rename)
    scope = scope_of(objects)
    live_leaves: dict[str, Leaf] = {}
    saved_leaves: dict[str, Leaf] = {}
    templates: dict[str, StateTree] = {}
    ignored = [name for name in saved.leaves if name.partition("/")[0] not in objects and not owned_by(name, objects)]
    absent: list[str] = []
    optional = list(options.optional)
    known: set[str] = set(objects)  # what patterns may mean
    refused: dict[str, MismatchError] = {}
    for name, obj in objects.items():
        part = part_of(saved, name, objects)
        if part is None:
            wanted = _wanted(name, obj, scope)
            chosen_here = [full for full in wanted if options.select is None or matches(full, options.select)]
            if chosen_here:
                absent.append(name)
                if all(matches(full, options.optional) for full in chosen_here):
                    optional.append(name)
            known.update(wanted)
            continue
        adapter = adapter_of(name, obj)
        try:
            template = adapter.template(obj, part, scope)
        except MismatchError as problem:
            refused[name] = about(name, problem)
            continue
        skipped = {join_name(name, n) for n in _ignorable(adapter, obj, part, scope)}
        ignored += sorted(skipped)
        templates[name] = template
        live_leaves.update((join_name(name, n), leaf) for n, leaf in template.leaves.items())
        saved_leaves.update(
            (full, leaf) for n, leaf in part.leaves.items() if (full := join_name(name, n)) not in skipped
        )
    problems = _asked_for(refused, saved, options.select) if options.strict else []
    absent += [] if options.strict else refused  # an object that refuses stays as it is
    ignored += [] if options.strict else _owned(saved, refused)
    kept = _kept_live(live_leaves, options.keep_live)
    if options.select is not None or options.optional:
        known.update([*live_leaves, *(name for name in saved.leaves if owned_by(name, objects))])
    chosen = None if options.select is None else set(select(sorted(known), options.select))
    if options.optional:
        select(sorted(known), options.optional, argument="optional")
    for leaves in (live_leaves, saved_leaves):
        for name in [n for n in leaves if n in kept or n not in chosen] if chosen is not None else kept:
            leaves.pop(name, None)
    found = match(live_leaves, saved_leaves)
    missing = tuple(name for name in (*absent, *found.missing) if not matches(name, optional))
    strict = Match(found.matched, missing, found.unexpected, found.reshaped, found.retyped, found.clashing)
    if options.strict or problems:
        elsewhere = [*saved.names(), *ignored]
        wrong = bool(missing or found.unexpected or found.retyped)
        retyped = {} if options.cast else found.retyped
        advice = _advice(objects, saved, scope, retyped, set(absent) & set(missing)) if wrong else None
        error = strict.error(title, cast=options.cast, elsewhere=elsewhere, advice=advice) if options.strict else None
        if problems or error is not None:
            raise _merged(error, problems, title)
    takes = [*found.matched, *(found.retyped if options.cast else ())]
    result = Plan(dict(objects), scope, saved, {n: origin[n] for n in takes}, templates, found, tuple(ignored))
    result.missing = (*absent, *found.missing, *found.clashing)
    result.ignored += (*found.unexpected, *found.clashing)
    return result


def _owned(saved: StateTree, objects: Collection[str]) -> list[str]:
    """The saved names of some tracked objects."""
    return [name for name in saved.leaves if owned_by(name, objects)] if objects else []


def _asked_for(
    refused: Mapping[str, MismatchError], saved: StateTree, patterns: Sequence[str] | None
) -> list[MismatchError]:
    """The errors of those tracked objects of which anything was selected."""
    if patterns is None or not refused:
        return list(refused.values())
    wanted = [name for name in saved.leaves if matches(name, patterns)]
    return [error for name, error in refused.items() if any(owned_by(one, [name]) for one in wanted)]


def _advice(
    objects: Mapping[str, Any],
    saved: StateTree,
    scope: Scope,
    retyped: Mapping[str, tuple[TensorSpec, TensorSpec]],
    absent: AbstractSet[str],
) -> str | None:
    """What is known beyond the names and dtypes that differ: by a framework, or by the snapshot's other names."""
    said = [_other_names(saved, objects, name) for name in sorted(absent)]
    for name, obj in objects.items():
        function, part = getattr(adapter_of(name, obj), "advice", None), part_of(saved, name, objects)
        if function is not None and part is not None:
            said.append(function(obj, part, scope, [pair for n, pair in retyped.items() if owned_by(n, [name])]))
    return "; ".join(dict.fromkeys(filter(None, said))) or None


def _other_names(saved: StateTree, objects: Mapping[str, Any], absent: str) -> str | None:
    """What the snapshot tracks, where it knows nothing of an object: it may go by another name there."""
    others = [name for name in saved.names() if name not in objects and name not in RESERVED]
    if not others:
        return None
    return f"the snapshot tracks {', '.join(others)}: rename={{'^{others[0]}/': '{absent}/'}}"


def _renamed(tree: StateTree, rules: Mapping[str, str] | None) -> tuple[StateTree, dict[str, str]]:
    """The tree under new names, and new name → old."""
    if not rules:
        return tree, dict(zip(tree.leaves, tree.leaves, strict=True))
    names = rename(tree.leaves, rules)
    origin = {new: old for old, new in names.items()}
    leaves = {names[name]: leaf for name, leaf in tree.leaves.items()}
    tops = dict.fromkeys(name.partition("/")[0] for name in leaves)
    old_tops = dict(zip(tree.names(), tree.skeleton.children, strict=True)) if isinstance(tree.skeleton, Branch) else {}
    children = []
    for top in tops:
        old = next((o.partition("/")[0] for n, o in origin.items() if n.partition("/")[0] == top), top)
        node = old_tops.get(old, Branch("dict"))
        children.append(_renamed_node(node, old, top, names))
    return StateTree(leaves, Branch("dict", tuple(tops), tuple(children))), origin


def _renamed_node(node: Node, old: str, new: str, names: Mapping[str, str]) -> Node:
    if isinstance(node, LeafRef):
        full = names.get(join_name(old, node.name), join_name(new, node.name))
        return LeafRef(full.removeprefix(f"{new}/"), node.kind)
    children = tuple(_renamed_node(child, old, new, names) for child in node.children)
    keys = list(node.keys)
    for index, (before, after) in enumerate(zip(node.children, children, strict=True)):
        if isinstance(before, LeafRef) and isinstance(after, LeafRef) and index < len(keys):
            old_last, new_last = before.name.rpartition("/")[2], after.name.rpartition("/")[2]
            if keys[index] == old_last:
                keys[index] = new_last
    return Branch(node.kind, tuple(keys), children)


def part_of(saved: StateTree, name: str, objects: Mapping[str, Any]) -> StateTree | None:
    """What was saved of one tracked object, without what belongs to objects tracked inside it."""
    if name not in saved.names():
        return None
    child = saved.child(name)
    inner = [other[len(name) + 1 :] for other in objects if other.startswith(f"{name}/")]
    if not inner:
        return child
    leaves = {n: x for n, x in child.leaves.items() if not any(n == i or n.startswith(f"{i}/") for i in inner)}
    return StateTree(leaves, child.skeleton)


def owned_by(name: str, tracked: Iterable[str]) -> bool:
    """Whether a leaf belongs to one of some tracked names."""
    return any(name == owner or name.startswith(f"{owner}/") for owner in tracked)


def _wanted(name: str, obj: Any, scope: Scope) -> list[str]:
    """What an object would have taken that the snapshot knows nothing of."""
    try:
        return [join_name(name, n) for n in adapter_of(name, obj).to_tree(obj, scope).leaves]
    except UnsupportedError:  # without memory or shape yet: that it is missing says more
        return [name]


def about(name: str, error: MismatchError) -> MismatchError:
    """An adapter's error, told with the tracked name: adapters do not know it."""
    return MismatchError(
        f"{name}: {error.message}",
        missing=[join_name(name, n) for n in error.missing],
        unexpected=[join_name(name, n) for n in error.unexpected],
        differs={join_name(name, n): pair for n, pair in error.differs.items()},
        expected=error.expected,
        found=error.found,
        hint=error.hint,
    )


def _ignorable(adapter: Adapter, obj: Any, saved: StateTree, scope: Scope) -> set[str]:
    """Saved names that the live object may do without (a saved optimizer, where the model has none)."""
    function = getattr(adapter, "ignorable", None)
    return set() if function is None else set(function(obj, saved, scope))


def _kept_live(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Names that `keep_live` means: a glob over names, or `optimizer.lr`: the leaf `lr` anywhere under `optimizer`."""
    names = list(names)
    kept: set[str] = set()
    for pattern in patterns:
        owner, _, last = pattern.rpartition(".")
        aliases = {"lr", "learning_rate"} if last in {"lr", "learning_rate"} else {last}
        hits = {
            name
            for name in names
            if matches(name, [pattern])
            or (owner and owner in name.split("/")[:-1] and name.rpartition("/")[2] in aliases)
        }
        if not hits:
            raise MismatchError(f"keep_live={pattern!r} matches no name", missing=[pattern])
        kept |= hits
    return kept


def _merged(error: MismatchError | None, problems: Sequence[MismatchError], title: str) -> MismatchError:
    """All that is wrong as one error."""
    if error is None and len(problems) == 1:
        return problems[0]
    every = [*([error] if error else []), *problems]
    lines = "\n".join(e.message for e in every)
    return MismatchError(
        lines if error else f"{title} does not fit the live objects; nothing was changed\n{lines}",
        missing=[name for e in every for name in e.missing],
        unexpected=[name for e in every for name in e.unexpected],
        differs={name: pair for e in every for name, pair in e.differs.items()},
        hint=every[0].hint,
    )
