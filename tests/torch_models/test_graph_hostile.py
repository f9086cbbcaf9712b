"""Graphs that nobody honest wrote: each is refused with the right error before anything of it runs."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch_models.models import rewrite
from torch import nn

import safepoint
from safepoint.errors import CorruptionError, MismatchError, SafepointError, UnsupportedError, UntrustedError
from safepoint.repository.model_file import read_model_file, write_model_file
from safepoint.tree import StateTree, Tensor

RAN: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _a_library_of_somebodys() -> Iterator[None]:
    """An operator that the program has loaded, and that no file may call."""
    with torch.library._scoped_library("somebody", "DEF") as library:
        library.define("act(Tensor x) -> Tensor")
        library.impl("act", lambda x: RAN.append("act") or x, "CompositeExplicitAutograd")
        yield


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("honest") / "model"
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    safepoint.save_model(model, place, example_inputs=(torch.randn(5, 4),))
    file = read_model_file(place)
    return file.structure["graph"], {name: leaf.numpy().copy() for name, leaf in file.tree.tensors.items()}


@pytest.fixture
def load(honest: Any, tmp_path: Path) -> Callable[..., Any]:
    """Change the honest graph, or the tensors beside it, and load what comes of it."""

    def do(change: Callable[[Any], Any], tensors: Callable[[Any], Any] = lambda _: None) -> Any:
        graph, arrays = copy.deepcopy(honest)
        changed = change(graph)
        tensors(arrays)
        leaves = {name: Tensor.of(array) for name, array in arrays.items()}
        structure = {"kind": "torch", "version": 1, "class": None, "graph": graph if changed is None else changed}
        write_model_file(tmp_path / "model", StateTree(leaves), structure=structure, format="pt")
        return safepoint.load_model(tmp_path / "model")

    RAN.clear()
    return do


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """A change: what is at this path of the document is `value`."""

    def change(graph: Any) -> None:
        for key in path[:-1]:
            graph = graph[key]
        graph[path[-1]] = value

    return change


def test_the_honest_graph_loads(load: Callable[..., Any]) -> None:
    assert load(lambda _: None)(torch.ones(2, 4)).shape == (2, 2)


TARGETS = [
    "aten.from_file.default",
    "aten.save.default",
    "aten.set_.source_Tensor",
    "aten.resize_.default",
    "aten._resize_output_.default",
    "aten.record_stream.default",
    "aten.data_ptr.default",
    "aten.linear.default.__call__",
    "aten.linear",
    "aten..default",
    "aten.__class__.default",
    "aten.__import__.default",
    "aten._cuda_getCurrentRawStream.default",
    "aten._fft_r2c.default",  # crashes where its arguments are not what torch.fft gives it
    "aten._stack.default",
    "aten.to.prim_dtype",  # its schema does not tell a dtype from a number
    "aten._safe_softmax.default",
    "aten._pdist_forward.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._transform_bias_rescale_qkv.default",
    "somebody.act.default",
    "torch.ops.somebody.act.default",
    "higher_order.cond",
    "inductor.resize_storage_bytes_.default",
    "prim.device.default",
    "profiler._record_function_enter_new.default",
    "quantized.linear.default",
    "torch.load",
    "torch.ops.load_library",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.getattr",
    "os.system",
    "subprocess.Popen",
    "operator.call",
    "operator.attrgetter",
    "operator.methodcaller",
    "math.prod",
    "eval",
    "",
    "a" * 100_000,
]


@pytest.mark.parametrize("target", TARGETS, ids=range(len(TARGETS)))
def test_a_target_outside_the_list_is_refused_and_nothing_runs(target: str, load: Callable[..., Any]) -> None:
    def change(graph: Any) -> None:
        graph["nodes"].append([target, [{"value": 0}], {}])

    with pytest.raises(UntrustedError, match="nothing was run") as refused:
        load(change)
    assert len(str(refused.value)) < 1000
    assert RAN == []


def test_an_operator_that_this_torch_does_not_have_is_a_mismatch(load: Callable[..., Any]) -> None:
    for target in ("aten.linear.newer", "aten.linear.__call__"):
        with pytest.raises(MismatchError, match="version of torch"):
            load(put("nodes", 0, 0, value=target))


CALLS: dict[str, list[Any]] = {
    "too few arguments": ["aten.linear.default", [], {}],
    "too many arguments": ["aten.relu.default", [{"value": 0}, 1, 2], {}],
    "an unknown name": ["aten.relu.default", [{"value": 0}], {"file": "x"}],
    "an argument twice": ["aten.relu.default", [{"value": 0}], {"self": {"value": 0}}],
    "names for a function": ["operator.add", [1, 2], {"x": 1}],
    "a number for a dtype": ["aten.cumsum.default", [{"value": 0}, 0], {"dtype": 10**9}],
    "a number for a dtype, by position": ["aten.to.dtype", [{"value": 0}, 10**9], {}],
    "a result for a dtype": ["aten.cumsum.default", [{"value": 0}, 0], {"dtype": {"value": 0}}],
    "a number for a layout": ["aten.zeros.default", [[1]], {"layout": 7}],
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_the_operator_does_not_take_is_refused(what: str, load: Callable[..., Any]) -> None:
    with pytest.raises((MismatchError, CorruptionError)):
        load(lambda graph: graph["nodes"].append(CALLS[what]))


TENSORS: dict[str, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
    "another shape": (put("tensors", 0, "shape", value=[4, 3]), lambda _: None),
    "another dtype": (put("tensors", 0, "dtype", value="int32"), lambda _: None),
    "a name that is not there": (put("tensors", 0, "stored", value="nowhere"), lambda _: None),
    "a weight less": (lambda _: None, lambda arrays: arrays.pop("0.weight")),
    "a weight of another shape": (
        lambda _: None,
        lambda arrays: arrays.update({"0.weight": np.ones((3, 5), np.float32)}),
    ),
    "a weight of another dtype": (lambda _: None, lambda arrays: arrays.update({"0.bias": np.ones(3, np.float64)})),
}


@pytest.mark.parametrize("what", TENSORS)
def test_a_graph_whose_weights_do_not_match_is_refused(what: str, load: Callable[..., Any]) -> None:
    with pytest.raises(MismatchError, match="not the graph of its weights"):
        load(*TENSORS[what])


ODD: dict[str, Callable[[Any], Any]] = {
    "no graph": lambda _: [1],
    "a text": lambda _: "graph",
    "no version": put("version", value="1"),
    "version 0": put("version", value=0),
    "an unknown field": put("code", value="print(1)"),
    "a node less its arguments": put("nodes", 0, value=["aten.relu.default"]),
    "a reference to what comes later": put("nodes", 0, 1, 0, value={"value": 10_000}),
    "a reference to itself": put("outputs", "tuple", value=[{"value": 99}]),
    "a negative reference": put("nodes", 0, 1, 0, value={"value": -1}),
    "a reference by truth": put("nodes", 0, 1, 0, value={"value": True}),
    "a reference by text": put("nodes", 0, 1, 0, value={"value": "0"}),
    "a tag that is unknown": put("nodes", 0, 1, 0, value={"pickle": "gASV"}),
    "bytes": put("nodes", 0, 1, 0, value={"bytes": "AAAA"}),
    "a device of its own": put("nodes", 0, 1, 0, value={"device": "cuda:0"}),
    "a dtype that is none": put("nodes", 0, 1, 0, value={"dtype": "load"}),
    "an integer beyond 64 bits": put("nodes", 0, 1, 0, value=2**80),
    "an integer beyond 64 bits by its tag": put("nodes", 0, 1, 0, value={"int": "0x" + "f" * 100_000}),
    "a text of a megabyte": put("nodes", 0, 1, 0, value="x" * 1_000_000),
    "a tensor of no dtype": put("tensors", 0, "dtype", value="object"),
    "a tensor without a name": put("tensors", 0, "name", value=""),
    "a tensor whose name is a place": put("tensors", 0, "name", value="a..b"),
    "two tensors of one name": put("tensors", 1, "name", value="0.weight"),
    "a tensor inside a tensor": put("tensors", 1, "name", value="0.weight.bias"),
    "a tensor 1,000 modules deep": put("tensors", 0, "name", value=".".join("a" * 500)),
    "a tensor tied to itself": put("tensors", 0, "tied", value=0),
    "a tensor tied to a later one": put("tensors", 0, "tied", value=3),
    "a tensor of another kind": put("tensors", 0, "kind", value="code"),
    "a buffer that is trained": put("tensors", 0, "kind", value="buffer"),
    "a shape of 100 axes": put("tensors", 0, "shape", value=[1] * 100),
    "a negative shape": put("tensors", 0, "shape", value=[-3, 4]),
    "an input that nothing brings": lambda graph: graph["inputs"].append(dict(graph["inputs"][0])),
    "an input that is brought twice": put("positional", value=[{"tuple": [{"input": 0}, {"input": 0}]}]),
    "an input that is neither": put("inputs", 0, "shape", value=None),
    "a size that is not described": put("inputs", 0, "shape", value=["s99", 4]),
    "a size that goes with nothing": lambda graph: next(iter(graph["sizes"].values())).update(one="s99"),
    "a guard that is a text": put("guards", value=["__import__('os')"]),
    "a guard of an unknown kind": put("guards", value=[["eval", 1]]),
    "a guard about nothing": put("guards", value=[["==", {"size": [7, 0]}, 1]]),
    "a guard of too much": put("guards", value=[["==", 1, 2, 3]]),
    "names that do not fit": put("names", value=["x", "y"]),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_graph_is_refused_at_once(what: str, load: Callable[..., Any]) -> None:
    started = time.monotonic()
    with pytest.raises(CorruptionError):
        load(ODD[what])
    assert time.monotonic() - started < 10


NESTED: dict[str, Callable[[Any], None]] = {
    "an argument": put("nodes", 0, 1, value=["HERE"]),
    "a result": put("outputs", value="HERE"),
    "inputs": put("positional", value=["HERE"]),
    "a guard": put("guards", value=["HERE"]),
}


@pytest.mark.parametrize("levels", [30, 300, 10_000])
@pytest.mark.parametrize("what", NESTED)
def test_what_is_nested_too_deep_is_refused_at_once(
    what: str, levels: int, load: Callable[..., Any], tmp_path: Path
) -> None:
    with contextlib.suppress(SafepointError):
        load(NESTED[what])
    rewrite(tmp_path / "model", lambda text: text.replace('"HERE"', "[" * levels + "1" + "]" * levels))
    started = time.monotonic()
    with pytest.raises(CorruptionError, match=r"is none|not a JSON document|is damaged"):
        safepoint.load_model(tmp_path / "model")
    assert time.monotonic() - started < 10


def test_a_newer_graph_is_not_taken_for_a_damaged_one(load: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match="newer safepoint"):
        load(put("version", value=2))


def test_sizes_do_not_grow_without_end(load: Callable[..., Any]) -> None:
    def change(graph: Any) -> None:
        first = len(graph["tensors"]) + len(graph["inputs"]) + len(graph["nodes"])
        graph["nodes"].append(["operator.mul", [2**40, 2**40], {}])
        graph["nodes"] += [["operator.mul", [{"value": first + n}, {"value": first + n}], {}] for n in range(40)]

    model = load(change)
    with pytest.raises(CorruptionError, match="beyond 64 bits"):
        model(torch.ones(2, 4))


def test_memory_outside_a_tensor_is_not_to_be_had(load: Callable[..., Any]) -> None:
    model = load(lambda graph: graph["nodes"].append(["aten.as_strided.default", [{"value": 0}, [10**6], [1]], {}]))
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(torch.ones(2, 4))


def test_what_is_no_graph_changes_nothing_that_is_asked_for_by_class(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="saved without its class"):
        load(lambda _: None) and safepoint.load_model(tmp_path / "model", form="class")
