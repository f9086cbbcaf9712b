"""Restore: everything is checked and read before anything live changes for good.

Order: match names and specs (`plan`) → read and verify every block → new values of immutable trees → objects with
`load_state_dict`, which may raise and are rolled back → the rest, which cannot. A large state that comes from a disk is
read straight into live memory, whose old content is kept until then. docs/design/0002-restore.md argues it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safepoint.adapters import Adapter, Scope
from safepoint.api.plan import Options, Plan, Source, about, owned_by, part_of
from safepoint.api.ranks import Ranks
from safepoint.api.tracked import adapter_of
from safepoint.api.undo import Undo, apart
from safepoint.errors import MismatchError, RestoreInterrupted, SafepointError, UnsupportedError
from safepoint.repository import Progress
from safepoint.store import spare_memory
from safepoint.tree import Leaf, StateTree, Tensor, address_of, bytes_of, dtype_of, join_name

_STAGED_BYTES = 256 << 20
"""Up to here a state is staged in fresh memory: one pass, and no error can come after live objects changed."""


def apply(plan: Plan, source: Source, options: Options, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read, verify, then change the live objects; returns tracked name → object (new where it is immutable).

    A state up to `_STAGED_BYTES` is staged. A larger one is read twice: verified as a whole, then verified again on
    its way into the live objects; `in_place` leaves the first pass out. So does a state that waits for the disk, where
    there is memory to keep what was live meanwhile.

    Raises:
        CorruptionError: damage was found; nothing live was changed.
        MismatchError: an object refused its state; everything was rolled back.
        RestoreInterrupted: live objects may be incomplete.
    """
    live_memory = _live_memory(plan)
    tied = _check_tied(plan, source, live_memory)
    size = sum(leaf.spec.num_bytes for name in plan.names if isinstance(leaf := plan.saved.leaves[name], Tensor))
    staged = set(plan.names) if size <= _STAGED_BYTES and not options.in_place else _to_stage(plan)
    later = {plan.names[name]: name for name in plan.names if name not in staged and name not in tied}
    names = {plan.names[name]: name for name in staged}
    memory = {live: live_memory[live] for live in later.values() if live in live_memory}
    undo = None if options.in_place else _undo_of(memory, later, source)
    passes = 1 if undo is not None or options.in_place else 2
    if later and passes == 2:
        source.check(later, progress=_share(progress, 0, 2))
    loaded = source.load(names, progress=progress if not later else None)
    leaves = {names[name]: leaf for name, leaf in loaded.leaves.items()}
    for name, (live, _) in plan.found.retyped.items():
        if name in leaves:
            leaves[name] = _cast(leaves[name], live.dtype)
    streamed = source.stream(
        [name for name, live in later.items() if live not in memory], progress=_share(progress, passes - 1, passes)
    )
    leaves.update((later[name], tensor) for name, tensor in streamed.items())

    def fill() -> None:
        source.load(
            [plan.names[name] for name in memory],
            into={plan.names[name]: target for name, target in memory.items()},
            before=None if undo is None else undo.keep,
            past_cache=options.in_place and _is_past_memory(memory, later, source),
            progress=_share(progress, passes - 1, passes),
        )

    if undo is None:
        return _put(plan, leaves, fill if memory else None)
    try:
        fill()
        return _put(plan, leaves, None)
    except BaseException:
        undo.put_back()
        raise


def _undo_of(memory: Mapping[str, NDArray[np.uint8]], later: Mapping[str, str], source: Source) -> Undo | None:
    """What can undo reading into live memory, where that takes less time than reading twice; else None.

    Where the disk is waited for, there is time to copy what was live, and for the pages that this takes. Processes
    that train together may be on one machine, and restore at the same time.
    """
    if not later or len(memory) != len(later):
        return None
    num_bytes = sum(map(len, memory.values()))
    fits = 2 * num_bytes * Ranks().size <= spare_memory()
    return Undo(num_bytes) if fits and source.waits(later) and apart(memory.values()) else None


def _is_past_memory(memory: Mapping[str, NDArray[np.uint8]], later: Mapping[str, str], source: Source) -> bool:
    """Whether a file is not in the page cache and too large for it; not where other processes read the same."""
    is_large = 2 * sum(map(len, memory.values())) > spare_memory()
    return is_large and Ranks().size == 1 and source.waits(later)


def _to_stage(plan: Plan) -> set[str]:
    """Live names of what is staged whatever its size: values, what is converted, what may be refused."""
    opaque = [name for name, obj in plan.objects.items() if is_opaque(adapter_of(name, obj), obj)]
    return {
        name
        for name in plan.names
        if not isinstance(plan.saved.leaves[name], Tensor) or name in plan.found.retyped or owned_by(name, opaque)
    }


def _share(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Progress of one of several passes, as progress of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress((part * total + done) // parts, total)


def _put(plan: Plan, leaves: Mapping[str, Leaf], fill: Callable[[], None] | None) -> dict[str, Any]:
    parts: list[tuple[str, Any, Adapter, StateTree]] = []
    for name, obj in plan.objects.items():
        saved = part_of(plan.saved, name, plan.objects)
        if saved is not None and name in plan.templates:  # else it refused, and stays as it is
            own = {n: leaves[full] for n in saved.leaves if (full := join_name(name, n)) in leaves}
            if saved.leaves and not own and not any(join_name(name, n) in plan.names for n in saved.leaves):
                continue  # nothing of it was chosen
            parts.append((name, obj, adapter_of(name, obj), StateTree(own, saved.skeleton)))
    for name, obj, adapter, tree in parts:
        examine = getattr(adapter, "examine", None)
        try:
            if examine is not None:
                examine(tree, obj, plan.scope)
        except MismatchError as error:
            raise about(name, error) from error
    result = _make_new(plan, [part for part in parts if _makes_new(part[2], part[1])])
    parts = [part for part in parts if part[0] not in result]
    result |= _put_opaque(plan, [part for part in parts if is_opaque(part[2], part[1])])
    doing = "live memory"
    try:
        if fill is not None:
            fill()
        for name, obj, adapter, tree in parts:
            doing = name
            if not is_opaque(adapter, obj):
                result[name] = adapter.from_tree(_write_memory(tree, plan.templates[name]), obj, plan.scope)
    except Exception as error:
        raise RestoreInterrupted(
            f"{doing} could not be changed, after the restore had begun",
            found=f"{type(error).__name__}: {error}",
            hint="make new objects and restore another snapshot",
        ) from error
    return result


def _write_memory(tree: StateTree, live: StateTree) -> StateTree:
    """Write what goes into memory that is there already; returns the rest, which its adapter puts where it belongs."""
    rest: dict[str, Leaf] = {}
    for name, leaf in tree.leaves.items():
        target = live.leaves.get(name)
        if (
            isinstance(leaf, Tensor)
            and isinstance(target, Tensor)
            and target.memory is not None
            and target.write is not None
            and target.spec == leaf.spec
        ):
            target.write(leaf.read())
        else:
            rest[name] = leaf
    return StateTree(rest, tree.skeleton)


def _makes_new(adapter: Adapter, obj: Any) -> bool:
    test = getattr(adapter, "immutable", None)
    return test is not None and bool(test(obj))


def _make_new(plan: Plan, parts: Iterable[tuple[str, Any, Adapter, StateTree]]) -> dict[str, Any]:
    """New values of immutable trees: first, because nothing is changed by making them."""
    result: dict[str, Any] = {}
    for name, obj, adapter, tree in parts:
        try:
            result[name] = adapter.from_tree(tree, obj, plan.scope)
        except SafepointError:
            raise
        except Exception as error:
            raise MismatchError(
                f"{name}: {type(obj).__name__} could not be made of what was saved; nothing was changed",
                expected="a tree that its own code accepts",
                found=f"{type(error).__name__}: {error}",
            ) from error
    return result


def _put_opaque(plan: Plan, parts: Iterable[tuple[str, Any, Adapter, StateTree]]) -> dict[str, Any]:
    """Objects with `load_state_dict`, all or none."""
    result: dict[str, Any] = {}
    done: list[Callable[[], object]] = []
    for name, obj, adapter, tree in parts:
        done.append(_undo(adapter, obj, plan.scope))
        try:
            result[name] = adapter.from_tree(tree, obj, plan.scope)
        except Exception as error:
            for step in reversed(done):
                step()
            raise MismatchError(
                f"{name}: {'load_state_dict' if adapter.OPAQUE else 'its code'} refused what was saved; "
                "nothing was changed",
                expected="a state it accepts",
                found=f"{type(error).__name__}: {error}",
                hint="leave it out of this Checkpoint, or save it again with this version of its code",
            ) from error
    return result


def is_opaque(adapter: Adapter, obj: Any) -> bool:
    """Whether restoring this object runs code of the user's, which may raise."""
    test = getattr(adapter, "opaque", None)
    return adapter.OPAQUE or (test is not None and bool(test(obj)))


def _undo(adapter: Adapter, obj: Any, scope: Scope) -> Callable[[], object]:
    """What puts an opaque object back: a copy of its state, given to its own `load_state_dict`."""
    before = adapter.to_tree(obj, scope).map_tensors(lambda _, t: Tensor.of_bytes(t.read().copy(), t.spec))
    return lambda: adapter.from_tree(before, obj, scope)


def _live_memory(plan: Plan) -> dict[str, NDArray[np.uint8]]:
    """Live name → memory that a read may fill directly."""
    memory: dict[str, NDArray[np.uint8]] = {}
    for name, template in plan.templates.items():
        if is_opaque(adapter_of(name, plan.objects[name]), plan.objects[name]):
            continue
        for relative, leaf in template.leaves.items():
            full = join_name(name, relative)
            exact = full in plan.names and full not in plan.found.retyped
            if exact and isinstance(leaf, Tensor) and leaf.memory is not None and leaf.write is not None:
                memory[full] = leaf.memory
    return memory


def _check_tied(plan: Plan, source: Source, memory: Mapping[str, NDArray[np.uint8]]) -> set[str]:
    """Live names whose memory is an earlier name's (tied weights, also of two objects): read once, both have it.

    Two contents for one memory are refused: one of them would silently win.

    Raises:
        MismatchError: they differ in the snapshot.
    """
    first: dict[tuple[int, int], str] = {}
    tied: set[str] = set()
    for name, own in memory.items():
        address = address_of(own)
        if address is None or (other := first.setdefault(address, name)) is name:
            continue
        tied.add(name)
        if not source.same(plan.names[other], plan.names[name]):
            raise MismatchError(
                f"{other} and {name} are one tensor in the live objects and two different ones in the snapshot; "
                "nothing was changed",
                differs={name: (f"tied to {other}", "a tensor of its own")},
                hint="build the objects without tying them, or take one of them with select=",
            )
    return tied


def _cast(leaf: Leaf, dtype: str) -> Leaf:
    if not isinstance(leaf, Tensor):
        return leaf
    try:
        array = leaf.numpy().astype(dtype_of(dtype))
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"cannot convert {leaf.spec.dtype} to {dtype}", found=error) from error
    return Tensor.of_bytes(bytes_of(array), type(leaf.spec)(leaf.spec.shape, dtype))
