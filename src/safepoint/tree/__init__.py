"""The hub: everything safepoint saves or loads is a state tree, leaves by name and a skeleton."""

from safepoint.tree.dtypes import DTYPES, NUMPY_NUMBERS, DType, dtype_name, dtype_of
from safepoint.tree.leaves import Leaf, Tensor, TensorSpec, Value, address_of, bytes_of, describe, is_value
from safepoint.tree.match import Match, match
from safepoint.tree.names import check_name, check_names, join_name, matches, nearest, rename, select
from safepoint.tree.notebook import notebook_table
from safepoint.tree.skeleton import Branch, LeafRef, Node
from safepoint.tree.slicing import take
from safepoint.tree.state_tree import StateTree, assign

__all__ = [
    "DTYPES",
    "NUMPY_NUMBERS",
    "Branch",
    "DType",
    "Leaf",
    "LeafRef",
    "Match",
    "Node",
    "StateTree",
    "Tensor",
    "TensorSpec",
    "Value",
    "address_of",
    "assign",
    "bytes_of",
    "check_name",
    "check_names",
    "describe",
    "dtype_name",
    "dtype_of",
    "is_value",
    "join_name",
    "match",
    "matches",
    "nearest",
    "notebook_table",
    "rename",
    "select",
    "take",
]
