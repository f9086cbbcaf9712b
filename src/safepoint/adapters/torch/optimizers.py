"""`torch.optim.Optimizer` ↔ state tree: state by owner and slot, hyperparameters by group, never a parameter's index.

Names: `<owner>/<slot>` (`model/encoder.weight/exp_avg`), `<owner>/group` (the group that the owner is in),
`groups/<i>/<hyperparameter>`, `algorithm`, `state/<key>` for what is kept under a word instead of a parameter.
Invariant: tensors keep their dtype (`Optimizer.load_state_dict` casts them to the parameter's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from safepoint.adapters.containers import capture, fill
from safepoint.adapters.protocol import Scope
from safepoint.adapters.torch import blank, tensors
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, Leaf, LeafRef, Node, StateTree, Tensor, TensorSpec

KIND = "torch.optimizer"
_GROUP, _POSITION = "group", "position"
_ALGORITHM = "algorithm"
_OURS = frozenset({_GROUP, _POSITION})

# How the step is computed, not what the state is: the live optimizer decides, on its device.
_NOT_STATE = frozenset({"params", "param_names", "foreach", "fused", "capturable", "differentiable"})

# Slots that have the shape of their parameter in every optimizer that uses these words.
_ELEMENTWISE = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"}
    | {"sum", "prev", "step_size", "ax"}
)


def to_tree(optimizer: Any, scope: Scope) -> StateTree:
    """The state of every parameter under its owner's name, and the hyperparameters of every group.

    Raises:
        UnsupportedError: a parameter has no name in this checkpoint, or something cannot be captured.
    """
    _check_kind(optimizer)
    leaves: dict[str, Leaf] = {_ALGORITHM: type(optimizer).__name__}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        hyper = {key: value for key, value in group.items() if key not in _NOT_STATE}
        groups.append(capture(hyper, leaves, f"groups/{index}"))
    states = {}
    ordered = _is_ordered(optimizer)
    for owner, (index, position, parameter) in _named(optimizer, scope).items():
        state = optimizer.state.get(parameter, {})
        bad = [slot for slot in state if not isinstance(slot, str) or "/" in slot or slot in _OURS]
        if bad:
            raise UnsupportedError(
                f"{owner}: a slot cannot be called {bad[0]!r}", expected="a word of its own, no slash"
            )
        place = {_GROUP: index, **({_POSITION: position} if ordered else {})}
        whole = {**place, **state}
        nodes = tuple(_captured(value, leaves, f"{owner}/{key}") for key, value in whole.items())
        states[owner] = Branch("dict", tuple(whole), nodes)
    words = {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
    others = capture(words, leaves, "state")
    owned = Branch("dict", tuple(states), tuple(states.values()))
    return StateTree(leaves, Branch(KIND, (), (Branch("list", (), tuple(groups)), owned, others)))


def _captured(value: Any, leaves: dict[str, Leaf], name: str) -> Node:
    if not isinstance(value, torch.Tensor):
        return capture(value, leaves, name)
    leaves[name] = tensors.named_leaf(name, value)  # `capture` asks every framework first: half of a save's time
    return LeafRef(name, "torch")


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The live leaves, plus the saved slots and hyperparameters of known owners and groups.

    Slots of an owner that had none when it was saved go; a hyperparameter that the snapshot does not know keeps its
    live value (a newer torch adds some).

    Raises:
        MismatchError: the state is another algorithm's, a parameter is in another group, or an order that matters is
            another.
    """
    live = to_tree(like, scope)
    algorithm = saved.leaves.get(_ALGORITHM, live.leaves[_ALGORITHM])
    if algorithm != live.leaves[_ALGORITHM]:
        raise MismatchError(
            "the state of another optimizer was saved",
            expected=live.leaves[_ALGORITHM],
            found=algorithm,
            hint="restore the model alone with select=, and let the new optimizer start afresh",
        )
    named = _named(like, scope)
    _check_places(live, saved, named)
    ours, theirs = _slots(live, named), _slots(saved, named)
    leaves: dict[str, Leaf] = {}
    groups = {_group_of(name) for name in saved.leaves}
    for name, leaf in live.leaves.items():
        group = _group_of(name)
        if name == _ALGORITHM or (group is not None and (name in saved.leaves or group not in groups)):
            leaves[name] = leaf
    for owner in named:
        leaves.update({f"{owner}/{key}": live.leaves[f"{owner}/{key}"] for key in _OURS if key in ours[owner]})
        known = theirs[owner].keys() & _OURS
        for slot in dict.fromkeys([*ours[owner], *theirs[owner]]):  # in order: a set's differs between processes
            if slot in _OURS:
                continue
            if slot in theirs[owner]:
                leaves.update(_accepted(slot, ours[owner].get(slot, {}), theirs[owner][slot], named[owner][2]))
            elif not known or theirs[owner].keys() - _OURS:
                leaves.update(ours[owner][slot])
    for name, leaf in saved.leaves.items():
        group = _group_of(name)
        if name.startswith("state/") or (group is not None and group < len(like.param_groups)):
            leaves.setdefault(name, leaf)
    return StateTree(leaves, live.skeleton)


def advice(like: Any, saved: StateTree, scope: Scope) -> str | None:
    """Why names differ, where the reason is which parameters the optimizer has, and in which groups."""
    theirs = {name.removesuffix(f"/{_GROUP}"): at for name, at in saved.leaves.items() if name.endswith(f"/{_GROUP}")}
    count = 1 + max((group for name in saved.leaves if (group := _group_of(name)) is not None), default=-1)
    here = len(like.param_groups)
    if count > here:
        alone = [owner for owner, at in theirs.items() if isinstance(at, int) and at >= here]
        return (
            f"{count} parameter groups were saved and the live optimizer has {here}: "
            f"call add_param_group() with {_listed(alone) or 'an empty list'} before the restore"
        )
    if 0 < count < here:
        return (
            f"{count} parameter groups were saved and the live optimizer has {here}: add the others after the restore"
        )
    named = _named(like, scope)
    gone = [owner for owner in theirs if owner not in named]
    return f"the live optimizer lacks {_listed(gone)}: give it what it had, frozen parameters too" if gone else None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Put groups, slots and the rest into `like`: in place where tensors exist, else on their parameter's device."""
    groups, states, others = _parts(tree)
    named = _named(like, scope)
    for index, group in enumerate(like.param_groups):
        node = groups[index] if index < len(groups) else _flat(tree, f"groups/{index}")
        fill(node, group, {n: leaf for n, leaf in tree.leaves.items() if n.startswith(f"groups/{index}/")})
    present = _slots(tree, named)
    for owner, (index, _, parameter) in named.items():
        if not present[owner]:
            continue
        node = states.get(owner) or _flat(tree, owner)
        _fill_state(like, parameter, node, present[owner], group=like.param_groups[index])
    if others is not None:
        fill(others, like.state, {n: leaf for n, leaf in tree.leaves.items() if n.startswith("state/")})
    return like


def _fill_state(
    optimizer: Any, parameter: Any, node: Branch, slots: Mapping[str, Mapping[str, Leaf]], *, group: Mapping[str, Any]
) -> None:
    nodes = {str(key): child for key, child in zip(node.keys, node.children, strict=True)}
    saved = [slot for slot in nodes if slot not in _OURS]
    if _GROUP in slots and not saved:
        optimizer.state.pop(parameter, None)  # it had no state when it was saved: it gets none
        return
    empty = {slot for slot in saved if isinstance(child := nodes[slot], Branch) and not child.children}
    if not optimizer.state.get(parameter) and set(saved) - empty - slots.keys():
        return  # part of a state is worse than none: every optimizer takes it for a whole one
    for slot in saved:
        child = nodes[slot]
        if slot not in slots and not (slot in empty and _GROUP in slots):
            continue
        state = optimizer.state[parameter]
        old = state.get(slot)
        known = set(map(id, _tensors(old)))
        state[slot] = _settled(fill(child, old, slots.get(slot, {})), slot, known, parameter, group)


def _settled(value: Any, slot: str, known: set[int], parameter: Any, group: Mapping[str, Any]) -> Any:
    """`value` with new tensors where the optimizer expects them: device and memory layout of the parameter."""
    if isinstance(value, list):
        value[:] = [_settled(item, slot, known, parameter, group) for item in value]
    elif isinstance(value, tuple):
        value = tuple(_settled(item, slot, known, parameter, group) for item in value)
    elif isinstance(value, dict):
        value.update({key: _settled(item, slot, known, parameter, group) for key, item in value.items()})
    elif isinstance(value, torch.Tensor) and id(value) not in known:
        # torch counts steps on the host unless the step itself runs on the device.
        host = slot == "step" and not (group.get("capturable") or group.get("fused"))
        device = "cpu" if host else blank.home(parameter)
        if value.shape == parameter.shape and not parameter.is_contiguous():
            # Kernels take another path, and round otherwise, where the layouts of state and parameter differ.
            like = torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False)
            target = tensors.leaf(like)
            assert target.write is not None
            target.write(tensors.leaf(value).read())
            return like
        return value.to(device)
    return value


def _accepted(slot: str, ours: Mapping[str, Leaf], theirs: Mapping[str, Leaf], parameter: Any) -> dict[str, Leaf]:
    """What one slot takes: a tensor where there is one must have its spec; everything else is data, as it was saved."""
    if len(theirs) == 1 and len(ours) <= 1:
        (name, leaf), live = next(iter(theirs.items())), next(iter(ours.values()), None)
        if isinstance(leaf, Tensor) and isinstance(live, Tensor) and ours.keys() == theirs.keys():
            return {name: live}
        if isinstance(leaf, Tensor) and slot in _ELEMENTWISE and leaf.spec.shape != tuple(parameter.shape):
            return {name: Tensor(TensorSpec(tuple(parameter.shape), leaf.spec.dtype), leaf.read)}
    return dict(theirs)


def _named(optimizer: Any, scope: Scope) -> dict[str, tuple[int, int, Any]]:
    """Owner → (group, position in the group, parameter), in the optimizer's order."""
    named: dict[str, tuple[int, int, Any]] = {}
    for index, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [None] * len(group["params"])
        for position, (parameter, own_name) in enumerate(zip(group["params"], own, strict=True)):
            owner = scope.owners.get(id(parameter)) or own_name
            if owner is None:
                raise UnsupportedError(
                    f"parameter {position} of group {index} of {type(optimizer).__name__} belongs to no tracked object",
                    found=f"{parameter.dtype} of shape {tuple(parameter.shape)}",
                    hint="track the model too: Checkpoint(model=model, optimizer=optimizer)",
                )
            if owner in named:
                raise UnsupportedError(f"two parameters of {type(optimizer).__name__} are called {owner!r}")
            named[owner] = (index, position, parameter)
    return named


def _check_kind(optimizer: Any) -> None:
    kind = type(optimizer)
    if kind.__name__ == "ZeroRedundancyOptimizer":
        raise UnsupportedError(f"{kind.__name__} is sharded: refused until the distributed work")
    if kind.state_dict is not torch.optim.Optimizer.state_dict:
        more = sorted(map(str, optimizer.state_dict().keys() - {"state", "param_groups"}))
        if more:
            raise UnsupportedError(
                f"{kind.__name__} keeps more than slots and groups: {', '.join(more)}",
                hint="track the optimizer inside it, and what else it keeps in a dictionary of its own",
            )


def _check_places(live: StateTree, saved: StateTree, named: Iterable[str]) -> None:
    differs: dict[str, tuple[object, object]] = {}
    for owner in named:
        for key in _OURS:
            name = f"{owner}/{key}"
            if name in saved.leaves and name in live.leaves and saved.leaves[name] != live.leaves[name]:
                differs[name] = (live.leaves[name], saved.leaves[name])
    if differs:
        lines = [f"{name}: live {ours}, saved {theirs}" for name, (ours, theirs) in differs.items()]
        raise MismatchError(
            "the optimizer's parameters are grouped or ordered differently; nothing was changed\n    "
            + "\n    ".join(lines[:20]),
            differs=differs,
            hint="build the parameter groups as they were when the snapshot was saved",
        )


def _group_of(name: str) -> int | None:
    """The group that a hyperparameter's name is about; None for other leaves."""
    head, _, rest = name.partition("/")
    index, slash, _ = rest.partition("/")
    return int(index) if head == "groups" and slash and index.isdecimal() else None


def _is_ordered(optimizer: Any) -> bool:
    """Whether state depends on the order of the parameters: LBFGS keeps one flat vector over all of them."""
    return isinstance(optimizer, torch.optim.LBFGS)


def _slots(tree: StateTree, named: Iterable[str]) -> dict[str, dict[str, dict[str, Leaf]]]:
    """Owner → slot → its leaves by full name; a slot that is an empty list or dictionary has none."""
    found: dict[str, dict[str, dict[str, Leaf]]] = {owner: {} for owner in named}
    for name, leaf in tree.leaves.items():
        owner, slash, rest = name, "/", ""
        while slash:  # the longest owner's name that fits: one may begin like another
            owner, slash, tail = owner.rpartition("/")
            rest = f"{tail}/{rest}" if rest else tail
            if owner in found:
                found[owner].setdefault(rest.partition("/")[0], {})[name] = leaf
                break
    for owner, node in _parts(tree)[1].items():
        if found.get(owner):
            for key, child in zip(node.keys, node.children, strict=True):
                if isinstance(child, Branch) and not child.children:
                    found[owner].setdefault(str(key), {})
    return found


def _parts(tree: StateTree) -> tuple[list[Branch], dict[str, Branch], Branch | None]:
    """Groups, states by owner and the rest of a skeleton; empty where it is no optimizer's (a stranger's file)."""
    node = tree.skeleton
    if not isinstance(node, Branch) or node.kind != KIND:
        return [], {}, None
    parts = [child for child in node.children if isinstance(child, Branch)]
    if len(parts) != 3:
        return [], {}, None
    groups, owned, others = parts
    states = {}
    for child in owned.children:
        # The reference, not the key, has the owner's name: renaming changes references.
        if isinstance(child, Branch) and child.children and isinstance(child.children[0], LeafRef):
            states[child.children[0].name.removesuffix(f"/{_GROUP}")] = child
    return [child for child in groups.children if isinstance(child, Branch)], states, others


def _flat(tree: StateTree, prefix: str) -> Branch:
    """A skeleton for leaves that came without one: `<prefix>/<key>`, no nesting."""
    names = [n for n in tree.leaves if n.startswith(f"{prefix}/") and "/" not in n[len(prefix) + 1 :]]
    refs: tuple[Node, ...] = tuple(LeafRef(n, "torch" if isinstance(tree.leaves[n], Tensor) else "") for n in names)
    return Branch("dict", tuple(n[len(prefix) + 1 :] for n in names), refs)


def _tensors(value: Any) -> Iterator[Any]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def to_come(optimizer: Any) -> int:
    """Bytes of slots that a first step will make: two for each parameter, as Adam's, where there are none yet."""
    return sum(
        2 * parameter.numel() * parameter.element_size()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and parameter not in optimizer.state
    )
