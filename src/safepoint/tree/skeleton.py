"""The skeleton: how leaves are put together again into dictionaries, lists and states of objects."""

from __future__ import annotations

from typing import TypeAlias, final

import msgspec

from safepoint.tree.leaves import Value


@final
class LeafRef(msgspec.Struct, frozen=True, gc=False):
    """A place in the skeleton that a leaf fills.

    Attributes:
        name: of the leaf, relative to the tree.
        kind: what to make of it: "" for a value or the adapter's own, else "numpy", "numpy.scalar", "torch",
            "tensorflow", "jax", "jax.weak", "jax.key.<implementation>", or "list.float" and "list.int" for lists of
            numbers kept as one tensor.
    """

    name: str
    kind: str = ""


@final
class Branch(msgspec.Struct, frozen=True, gc=False):
    """A node with children, in order; order is data, so it is a list and never a mapping.

    Attributes:
        kind: "dict", "list", "tuple" or an adapter's word for an object ("torch.module", "state_dict", ...).
        keys: of the children where the kind has keys (exact Python values: 1 is not "1"), else empty.
        children: empty where the leaves' names say it all (modules).
    """

    kind: str
    keys: tuple[Value, ...] = ()
    children: tuple[Node, ...] = ()


Node: TypeAlias = LeafRef | Branch
