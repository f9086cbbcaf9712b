"""`nn.Module` ↔ state tree: what `state_dict()` names, under clean names.

Invariant: names are the same with and without `DistributedDataParallel`, `DataParallel` and `torch.compile`. Tensors
are written in place, so optimizers, tied weights and compiled graphs keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from safepoint.adapters.containers import capture, renew
from safepoint.adapters.torch import blank, sharing, tensors
from safepoint.errors import UnsupportedError
from safepoint.tree import Branch, Leaf, LeafRef, Node, StateTree, Tensor

KIND = "torch.module"
_EXTRA = "_extra_state"  # torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX
_SHARDING = frozenset({"FullyShardedDataParallel"})


@final
@dataclass(frozen=True, slots=True)
class _State:
    """What `state_dict()` of a module holds, by clean name.

    Attributes:
        live: parameters and buffers, and views of them: written in place.
        extra: what `get_extra_state` returned, with the submodule that takes it back.
        derived: what a hook made (a copy, a value): only `load_state_dict` can take it back.
        raw: clean name → the module's own.
    """

    live: dict[str, Any]
    extra: dict[str, tuple[Any, Any]]
    derived: dict[str, Any]
    raw: dict[str, str]


def owners(module: Any) -> list[tuple[str, Any]]:
    """Every parameter once, under the first of its names; those that a hook hides from `state_dict` too."""
    drop = _transparent(module)
    names = [*module.state_dict(keep_vars=True).items(), *module.named_parameters()]
    first: dict[int, tuple[str, Any]] = {}
    for raw, value in names:
        if isinstance(value, torch.nn.Parameter) or (isinstance(value, torch.Tensor) and value.requires_grad):
            first.setdefault(id(value), (_clean(raw, drop), value))
    return list(first.values())


def to_tree(module: Any) -> StateTree:
    """The parameters, persistent buffers and extra states of a module, live.

    Raises:
        UnsupportedError: one cannot be captured; the message has its name.
    """
    return _tree(_state(module), tensors.named_leaf)


def _tree(state: _State, leaf_of: Callable[[str, Any], Tensor]) -> StateTree:
    leaves: dict[str, Leaf] = {}
    nodes: dict[str, Node] = {}
    for name in state.raw:
        if name in state.live:
            leaves[name] = leaf_of(name, state.live[name])
        else:
            value = state.extra[name][0] if name in state.extra else state.derived[name]
            nodes[name] = capture(_detached(value), leaves, name)
    return StateTree(leaves, Branch(KIND, tuple(nodes), tuple(nodes.values())))


def template(like: Any, saved: StateTree) -> StateTree:
    """The live leaves; what extra states and hooks made is data, and comes as it was saved.

    A name that is tied to one that the snapshot has may be absent: many files keep tied weights once. Tensors without
    memory (meta device, lazy modules) are accepted: `from_tree` materialises them.

    Raises:
        UnsupportedError: something cannot be restored; the message has its name.
    """
    state = _state(like)
    blanks = [name for name, tensor in state.live.items() if blank.is_blank(tensor)]
    if blanks and state.extra:
        raise UnsupportedError(
            f"{blanks[0]} has no memory yet, and extra state cannot be rolled back over that",
            hint="module.to_empty(device=...) gives it memory, one batch gives lazy modules their shapes",
        )

    def leaf_of(name: str, tensor: Any) -> Tensor:
        return blank.leaf(tensor, saved.leaves.get(name)) if name in blanks else tensors.named_leaf(name, tensor)

    live = _tree(state, leaf_of)
    data = set(_nodes(live))
    there = {_part(name, data) for name in saved.leaves} | _nodes(saved).keys()
    leaves = {n: leaf for n, leaf in live.leaves.items() if (part := _part(n, data)) is None or part not in there}
    leaves.update({name: leaf for name, leaf in saved.leaves.items() if _part(name, data) is not None})
    for names in sharing.tied(state.live):
        if any(name in saved.leaves for name in names):
            for name in names:
                if name not in saved.leaves:
                    del leaves[name]
    return StateTree(leaves, live.skeleton)


def check(tree: StateTree, like: Any) -> None:
    """What can only be told from the bytes: tensors that share memory in `like` must agree; changes nothing.

    Raises:
        MismatchError: they do not.
    """
    live = _state(like).live
    sharing.check(live, {name: leaf for name, leaf in tree.tensors.items() if name in live})


def from_tree(tree: StateTree, like: Any) -> Any:
    """Write the leaves into `like`; what runs the module's own code goes first.

    Tensors on the meta device get memory on the default device (`torch.set_default_device`), and stay the objects
    that they are: an optimizer built over them goes on to hold them. What is left without memory is named in a warning.

    Raises:
        MismatchError: see `check`; nothing was changed.
        UnsupportedError: `set_extra_state` raised, and everything was put back; or `load_state_dict` raised.
    """
    check(tree, like)
    state = _state(like)
    found = {name: leaf for name, leaf in tree.tensors.items() if name in state.live}
    _set_data(like, state, tree)
    for name, leaf in found.items():
        if blank.is_blank(state.live[name]):
            blank.materialise(state.live[name], leaf.spec.shape)
        target = tensors.leaf(state.live[name])
        assert target.write is not None
        target.write(leaf.read())
    blank.tell(like)
    return like


def _state(module: Any) -> _State:
    for path, child in module.named_modules():
        if type(child).__name__ in _SHARDING:
            raise UnsupportedError(
                f"{path or 'the module'} is a {type(child).__name__}: sharded modules are refused until the "
                "distributed work"
            )
    drop = _transparent(module)
    own = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    memory: set[object] = set()
    state = _State({}, {}, {}, {})
    for raw, value in module.state_dict(keep_vars=True).items():
        name = _clean(raw, drop)
        if name in state.raw:
            raise UnsupportedError(f"two parameters are called {name!r}", found=f"{state.raw[name]} and {raw}")
        state.raw[name] = raw
        if raw == _EXTRA or raw.endswith(f".{_EXTRA}"):
            state.extra[name] = (value, _taker(module, name, raw))
        elif id(value) in own:
            state.live[name] = value
        else:
            memory = memory or {sharing.place(tensor) for tensor in own.values()}
            view = isinstance(value, torch.Tensor) and (tensors.why_not(value) or sharing.place(value) in memory)
            (state.live if view else state.derived)[name] = value
    return state


def _detached(value: Any) -> Any:
    """`get_extra_state` may return live tensors: they are data here, and `set_extra_state` takes them back."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _taker(module: Any, name: str, raw: str) -> Any:
    """The submodule whose `set_extra_state` takes back what `get_extra_state` gave."""
    try:
        child = module.get_submodule(raw.removesuffix(_EXTRA).removesuffix("."))
    except AttributeError as error:
        raise UnsupportedError(f"{name}: a hook renamed this extra state, nothing can take it back") from error
    if type(child).set_extra_state is torch.nn.Module.set_extra_state:
        raise UnsupportedError(f"{name}: {type(child).__name__} has get_extra_state and no set_extra_state")
    return child


def _set_data(like: Any, state: _State, tree: StateTree) -> None:
    nodes = _nodes(tree)
    values: dict[str, Any] = {}
    for name, old in {**{n: value for n, (value, _) in state.extra.items()}, **state.derived}.items():
        leaves = {n: leaf for n, leaf in tree.leaves.items() if _part(n, {name})}
        empty = name in nodes and _first(nodes[name]) is None  # an empty list has no leaf, and is a state too
        if leaves or empty:
            values[name] = renew(nodes.get(name) or _node_over(leaves, nodes, name), old, leaves)
    done: list[str] = []
    try:
        for name in [name for name in values if name in state.extra]:
            done.append(name)
            state.extra[name][1].set_extra_state(values[name])
        if any(name in state.derived for name in values):
            # load_state_dict expects every name: the live tensors too, which it copies onto themselves.
            whole = {**state.live, **{n: value for n, (value, _) in state.extra.items()}, **state.derived, **values}
            like.load_state_dict({state.raw[name]: value for name, value in whole.items()})
    except Exception as error:
        for name in done:
            state.extra[name][1].set_extra_state(state.extra[name][0])
        what = done[-1] if done else ", ".join(state.derived)
        raise UnsupportedError(f"{type(like).__name__} refused its own state ({what})", found=error) from error


def _node_over(leaves: Mapping[str, Leaf], nodes: Mapping[str, Node], name: str) -> Node:
    """How `name` is put together where its node has another key: renaming changes references, not keys."""
    return next((node for node in nodes.values() if _first(node) in leaves), LeafRef(name, "torch"))


def _first(node: Node) -> str | None:
    """The name of the first leaf in a node."""
    if isinstance(node, LeafRef):
        return node.name
    return next((first for first in map(_first, node.children) if first is not None), None)


def _transparent(module: Any) -> set[str]:
    """Paths of the wrapped module inside each wrapper that names look through."""
    wrappers: list[tuple[type, str]] = [(torch.nn.DataParallel, "module")]
    if torch.distributed.is_available():
        wrappers.append((torch.nn.parallel.DistributedDataParallel, "module"))
    paths = set()
    for path, child in module.named_modules(remove_duplicate=False):
        # OptimizedModule lives in torch._dynamo, which takes seconds to import: told by what only it has.
        inner = next((name for kind, name in wrappers if isinstance(child, kind)), None)
        if inner is None and type(child).__name__ == "OptimizedModule" and "_orig_mod" in child._modules:
            inner = "_orig_mod"
        if inner is not None:
            paths.add(f"{path}.{inner}" if path else inner)
    return paths


def _clean(raw: str, drop: set[str]) -> str:
    """A name without the segments that lead into wrappers."""
    if not drop:
        return raw
    kept, path = [], ""
    for segment in raw.split("."):
        path = f"{path}.{segment}" if path else segment
        if path not in drop:
            kept.append(segment)
    return ".".join(kept)


def _part(name: str, parts: set[str]) -> str | None:
    """Which of `parts` a leaf belongs to: it is the part, or lies below it."""
    if name in parts:
        return name
    head = name
    while "/" in head:
        head = head.rpartition("/")[0]
        if head in parts:
            return head
    return None


def _nodes(tree: StateTree) -> dict[str, Node]:
    """How the extra states in a tree are put together, by name."""
    node = tree.skeleton
    if not isinstance(node, Branch) or node.kind != KIND:
        return {}
    return {str(key): child for key, child in zip(node.keys, node.children, strict=True)}
