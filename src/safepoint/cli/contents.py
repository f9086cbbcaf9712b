"""A state tree as rows of a table: layers by their names, long runs of plain values in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from safepoint.cli.text import count, size

if TYPE_CHECKING:
    from rich.console import Console

    from safepoint.tree import Leaf

_MANY_VALUES = 4


@final
@dataclass(slots=True)
class _Node:
    """A part of a name that leads on, or a leaf; a label keeps its separator."""

    label: str
    children: dict[str, _Node] = field(default_factory=dict)
    leaf: Leaf = None
    is_leaf: bool = False


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        guides: for each level above, whether more of it follows; the last one: whether siblings follow.
        label: the last part of the name, or several where there is only one way.
        kind: dtype or type of value; "" for a branch.
        content: shape or value.
        size: of the tensor, or of all tensors below.
        is_branch: whether rows below belong to it.
    """

    guides: tuple[bool, ...]
    label: str
    kind: str
    content: str
    size: str
    is_branch: bool


def rows(leaves: Mapping[str, Leaf], *, depth: int | None = None) -> list[Row]:
    """The rows of a tree; branches below `depth` levels are summed up in one row each."""
    root = _Node("")
    for name, leaf in leaves.items():
        node = root
        for part in _parts(name):
            node = node.children.setdefault(part, _Node(part))
        node.leaf, node.is_leaf = leaf, True
    return list(_walk(root, (), depth))


def documents(leaves: Mapping[str, Leaf]) -> dict[str, list[dict[str, Any]]]:
    """The same for programs: every leaf, in order."""
    from safepoint.codec import encode_value
    from safepoint.tree import Tensor

    tensors, values = [], []
    for name, leaf in leaves.items():
        if isinstance(leaf, Tensor):
            spec = leaf.spec
            tensors.append({"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "num_bytes": spec.num_bytes})
        else:
            values.append({"name": name, "value": encode_value(leaf)})
    return {"tensors": tensors, "values": values}


def print_leaves(console: Console, leaves: Mapping[str, Leaf], depth: int | None) -> None:
    """The tree as a table for people."""
    from rich.text import Text

    from safepoint.cli.output import cell, guides, table

    lines = table("name", "type", "shape or value", "size", right=("size",), fold=("name", "shape or value"))
    for row in rows(leaves, depth=depth):
        style = "bold" if len(row.guides) == 1 else ""
        name = Text.assemble((guides(row.guides, console), "dim"), cell(row.label, style), overflow="fold")
        lines.add_row(name, cell(row.kind, "cyan"), cell(row.content), cell(row.size, "dim" if row.is_branch else ""))
    console.print()
    console.print(lines)


def _parts(name: str) -> list[str]:
    """`model/encoder.weight` → `model/`, `encoder.`, `weight`."""
    parts = [""]
    for character in name:
        parts[-1] += character
        if character in "/.":
            parts.append("")
    return [part for part in parts if part] or ["(the whole)"]


def _walk(node: _Node, guides: tuple[bool, ...], depth: int | None) -> Iterator[Row]:
    children = list(node.children.values())
    for index, start in enumerate(children):
        child, label = start, start.label
        while len(child.children) == 1 and not child.is_leaf:
            (child,) = child.children.values()
            label += child.label
        here = (*guides, index < len(children) - 1)
        if child.is_leaf:
            yield _leaf_row(here, label, child.leaf)
            if not child.children:
                continue
        label = label.rstrip("/.") or label
        below = [leaf.leaf for leaf in _leaves(child) if leaf is not child]
        run = _run_of_values(child)
        if run is not None:
            yield Row(here, label, count(len(run), "value"), _first_and_last(run), "", is_branch=False)
        else:
            total, tensors = _total(below)
            folded = depth is not None and len(here) >= depth
            yield Row(here, label, "", count(tensors, "tensor") if folded and tensors else "", total, is_branch=True)
            if not folded:
                yield from _walk(child, here, depth)


def _leaf_row(guides: tuple[bool, ...], label: str, leaf: Leaf) -> Row:
    from safepoint.tree import Tensor, describe

    if isinstance(leaf, Tensor):
        shape = "[" + ", ".join(map(str, leaf.spec.shape)) + "]"
        return Row(guides, label, leaf.spec.dtype, shape, size(leaf.spec.num_bytes), is_branch=False)
    return Row(guides, label, "None" if leaf is None else type(leaf).__name__, describe(leaf), "", is_branch=False)


def _run_of_values(node: _Node) -> list[Leaf] | None:
    """The values of a list too long to show, or None: a loss history has thousands."""
    from safepoint.tree import Tensor

    leaves = [child.leaf for child in node.children.values()]
    numbered = all(label.isdigit() and child.is_leaf and not child.children for label, child in node.children.items())
    if len(leaves) <= _MANY_VALUES or not numbered or any(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    return leaves


def _first_and_last(values: list[Leaf]) -> str:
    words = [
        f"{value:.4g}" if isinstance(value, float) else repr(value)[:12] for value in (values[0], values[1], values[-1])
    ]
    return f"{words[0]}, {words[1]} ... {words[2]}"


def _leaves(node: _Node) -> Iterator[_Node]:
    if node.is_leaf:
        yield node
    for child in node.children.values():
        yield from _leaves(child)


def _total(leaves: list[Leaf]) -> tuple[str, int]:
    from safepoint.tree import Tensor

    sizes = [leaf.spec.num_bytes for leaf in leaves if isinstance(leaf, Tensor)]
    return size(sum(sizes)) if sizes else "", len(sizes)
