"""What `show` says of a whole model's structure, of each framework; hostile structures raise nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from safepoint.cli.structure import layers_of, summary_of

LINEAR = {"class": "torch.nn.Linear", "arguments": [["in_features", 8], ["out_features", 4], ["bias", True]]}
TORCH = {
    "kind": "torch",
    "torch_version": "2.13.0",
    "class": {
        "model": {
            "class": "torch.nn.Sequential",
            "children": [["0", LINEAR], ["1", {"class": "mine.Block", "children": [["inner", LINEAR]]}]],
        }
    },
    "graph": {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["s7", 8]}, {"name": "flag", "dtype": None}],
        "nodes": [["aten.linear.default", [], {}], ["aten.relu.default", [], {}]],
    },
}
JAX = {
    "kind": "jax",
    "style": "function",
    "jax_version": "0.10.2",
    "class": {"function": {"name": "mine.predict"}},
    "graph": {"inputs": [{"name": "x", "dtype": "float32"}], "programs": [{"inputs": [["b", 8]]}]},
}


def test_a_pytorch_model() -> None:
    assert summary_of(TORCH) == {
        "class": "torch.nn.Sequential",
        "graph": "x float32[any, 8] in 2 operations",
        "written by": "PyTorch 2.13.0",
    }
    built = "in_features=8, out_features=4, bias=True"
    assert layers_of(TORCH) == [
        {"name": "0", "class": "Linear", "details": built},
        {"name": "1.inner", "class": "Linear", "details": built},
    ]


def test_a_class_is_shown_with_what_it_is_called_with() -> None:
    model = {"class": "mine.Net", "arguments": [["n", 4], ["config", {"deep": 1}]]}
    structure = {"kind": "torch", "torch_version": "2", "class": {"model": model}, "graph": None}
    assert summary_of(structure) == {"class": "mine.Net(n=4, config=...)", "written by": "PyTorch 2"}
    assert layers_of(structure) == []


def test_a_jax_model() -> None:
    assert summary_of(JAX) == {"function": "mine.predict", "graph": "x float32[any, 8]", "written by": "JAX 0.10.2"}
    assert layers_of(JAX) == []


def _with_hostile_parts(structure: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The structure with any of its parts replaced by any JSON."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=4,
    )

    def parts(node: Any) -> st.SearchStrategy[Any]:
        if isinstance(node, dict):
            return st.fixed_dictionaries({key: parts(child) | values for key, child in node.items()}) | values
        if isinstance(node, list):
            return st.tuples(*map(parts, node)).map(list) | values
        return st.just(node) | values

    return st.fixed_dictionaries(
        {key: st.just(node) if key == "kind" else parts(node) for key, node in structure.items()}
    )


@given(_with_hostile_parts(TORCH) | _with_hostile_parts(JAX))
def test_a_hostile_structure_raises_nothing(structure: dict[str, Any]) -> None:
    words = [*summary_of(structure).values(), *(word for layer in layers_of(structure) for word in layer.values())]
    assert all(isinstance(word, str) and len(word) < 1000 for word in words)
