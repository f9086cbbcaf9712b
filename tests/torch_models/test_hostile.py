"""Files that nobody honest wrote: each is refused with the right error, before anything that it names is run."""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch_models.models import rewrite
from torch import nn

import safepoint
from safepoint.adapters.torch.whole_model.build import MAX_MODULES
from safepoint.errors import CorruptionError, SafepointError, UnsupportedError, UntrustedError
from safepoint.repository.model_file import write_model_file
from safepoint.tree import Branch, StateTree, Tensor

RAN: list[str] = []


@safepoint.register("tests.hostile.Net")
class Net(nn.Module):
    limit = 3

    def __init__(self, width: int = 2, act: Any = None) -> None:
        super().__init__()
        RAN.append("Net")
        self.linear = nn.Linear(width, width)
        self.act = act
        self.steps = 0

    def forward(self, x: Any) -> Any:
        return self.linear(x)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Write a file with this structure and this state, and load it."""

    def do(model: Any, state: dict[str, Any] | None = None, **more: Any) -> Any:
        form = {"model": model, "training": True, "other_mode": [], "frozen": [], "ties": [], **more}
        structure = {"kind": "torch", "version": 1, "class": form, "graph": None}
        leaves = {name: Tensor.of(np.asarray(array, np.float32)) for name, array in (state or {}).items()}
        tree = StateTree(leaves, Branch("torch.module"))
        write_model_file(tmp_path / "model", tree, structure=structure, format="pt")
        return safepoint.load_model(tmp_path / "model", trust=("tests",))

    return do


LINEAR = {"class": "torch.nn.Linear", "arguments": [["in_features", 2], ["out_features", 2]]}
STATE = {"weight": np.eye(2), "bias": np.ones(2)}


def test_the_honest_file_loads(load: Callable[..., Any]) -> None:
    assert torch.equal(load(LINEAR, STATE)(torch.ones(1, 2)), torch.full((1, 2), 2.0))


NAMES = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.ops.load_library",
    "torch.utils.cpp_extension.load",
    "torch.nn.Linear.__init__",
    "torch.nn.DataParallel",
    "torch.nn.LazyLinear",
    "torch.nn.modules.linear.Linear",
    "torch.nn.functional.os",
    "torch.nn.functional.boolean_dispatch",
    "torch.nn.quantized.Linear",
    "torch.distributed.nn.RemoteModule",
    "torch.fx.GraphModule",
    "safepoint.load_model",
    "safepoint.testing.faults.Faults",
    "antigravity.Net",
    "this.Net",
    "tests.torch_models.test_hostile.os",
    "tests.torch_models.test_hostile.torch",
    "tests.torch_models.test_hostile.nn.Linear",
    "tests.torch_models.test_hostile.RAN.append",
    "tests.torch_models.test_hostile.types.FunctionType",
    "",
    ".",
    "__main__.__builtins__",
    "a" * 100_000,
    "torch.nn.Linear\x00",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("place", ["class", "name", "partial", "object"])
def test_a_name_that_nobody_allowed_is_refused_wherever_it_stands(
    name: str, place: str, load: Callable[..., Any]
) -> None:
    imported = set(sys.modules)
    argument = {"name": {"name": name}, "partial": {"partial": [name, [], []]}, "object": {"object": [name, []]}}
    node: Any = (
        {"class": name} if place == "class" else {"class": "tests.hostile.Net", "arguments": [["act", argument[place]]]}
    )
    with pytest.raises(UntrustedError) as refused:
        load({"class": "torch.nn.Sequential", "children": [["0", {"class": "tests.hostile.Net"}], ["1", node]]})
    assert len(str(refused.value)) < 1500
    assert RAN == []
    assert {module.partition(".")[0] for module in set(sys.modules) - imported} <= {
        "safepoint",
        "msgspec",
        "blake3",
        "xxhash",
    }


def test_a_function_where_a_class_belongs_is_refused(load: Callable[..., Any]) -> None:
    for name in ("torch.relu", "torch.nn.functional.gelu"):
        with pytest.raises(UntrustedError, match=r"no torch\.nn\.Module class"):
            load({"class": name})


def test_trusting_torch_does_not_allow_its_functions(tmp_path: Path) -> None:
    node = {"class": "tests.hostile.Net", "arguments": [["act", {"partial": ["torch.hub.load", ["x"], []]}]]}
    structure = {"kind": "torch", "version": 1, "class": {"model": node, "training": True}}
    write_model_file(tmp_path / "model", StateTree({}), structure=structure, format="pt")
    with pytest.raises(UntrustedError):
        safepoint.load_model(tmp_path / "model", trust=("torch",))
    assert RAN == []


def test_what_a_trusted_module_imported_is_not_trusted(load: Callable[..., Any], tmp_path: Path) -> None:
    module = types.ModuleType("tests.pretended")
    module.Net = safepoint.Checkpoint
    module.run = exec
    module.Linear = nn.Linear
    sys.modules["tests.pretended"] = module
    try:
        for name in ("Net", "run", "Linear"):
            with pytest.raises(UntrustedError):
                load({"class": f"tests.pretended.{name}"})
    finally:
        del sys.modules["tests.pretended"]


def _nested(depth: int) -> Any:
    node: Any = LINEAR
    for _ in range(depth):
        node = {"class": "torch.nn.Sequential", "children": [["0", node]]}
    return node


def _deep_argument(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"class": "torch.nn.Identity", "arguments": [["args", value]]}


TOO_MUCH: dict[str, Any] = {
    "nested 300 deep": lambda: _nested(300),
    "an argument 100 deep": lambda: _deep_argument(100),
    "too many modules": lambda: {
        "class": "torch.nn.ModuleList",
        "children": [[str(i), {"class": "torch.nn.ReLU"}] for i in range(MAX_MODULES)],
    },
    "a layer of 4 TB": lambda: {
        "class": "torch.nn.Linear",
        "arguments": [["in_features", 10**6], ["out_features", 10**6]],
    },
    "a layer of 2**80": lambda: {
        "class": "torch.nn.Linear",
        "arguments": [["in_features", 2**40], ["out_features", 2**40]],
    },
    "an embedding of 4 TB": lambda: {
        "class": "torch.nn.Embedding",
        "arguments": [["num_embeddings", 10**12], ["embedding_dim", 1]],
    },
    "a parameter of 4 TB": lambda: {
        "class": "torch.nn.ParameterList",
        "items": [[None, {"parameter": [[10**12], "float32"]}]],
    },
    "a batch norm of 4 TB": lambda: {"class": "torch.nn.BatchNorm1d", "arguments": [["num_features", 10**12]]},
    "10**9 layers": lambda: {
        "class": "torch.nn.TransformerEncoder",
        "arguments": [
            [
                "encoder_layer",
                {"module": {"class": "torch.nn.TransformerEncoderLayer", "arguments": [["d_model", 2], ["nhead", 1]]}},
            ],
            ["num_layers", 10**9],
        ],
    },
    "10**9 layers of an LSTM": lambda: {
        "class": "torch.nn.LSTM",
        "arguments": [["input_size", 1], ["hidden_size", 1], ["num_layers", 10**9]],
    },
    "10**9 layers of a transformer": lambda: {
        "class": "torch.nn.Transformer",
        "arguments": [["d_model", 2], ["nhead", 1], ["num_encoder_layers", 10**9]],
    },
    "10**9 clusters": lambda: {
        "class": "torch.nn.AdaptiveLogSoftmaxWithLoss",
        "arguments": [["in_features", 2], ["n_classes", 10**10], ["cutoffs", {"range": [1, 10**9, 1]}]],
    },
    "a range of 10**12": lambda: {
        "class": "torch.nn.ParameterList",
        "items": [[None, {"tuple": [{"range": [0, 10**12, 1]}]}]],
    },
    "an integer of 10 million digits": lambda: {
        "class": "torch.nn.Flatten",
        "arguments": [["start_dim", {"int": "0x" + "f" * 10_000_000}]],
    },
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_is_too_deep_or_too_large_is_refused_at_once(what: str, load: Callable[..., Any]) -> None:
    node = TOO_MUCH[what]()
    started = time.monotonic()
    with pytest.raises(SafepointError) as refused:
        load(node, STATE)
    assert isinstance(refused.value, CorruptionError | UnsupportedError | safepoint.MismatchError)
    assert time.monotonic() - started < 20


DEEP = {
    "modules": (
        {"class": "torch.nn.Sequential", "children": [["0", "HERE"]]},
        ('{"class":"torch.nn.Sequential","children":[["0",', "]]}"),
    ),
    "arguments": ({"class": "torch.nn.Identity", "arguments": [["args", "HERE"]]}, ("[", "]")),
    "what means nothing": ({"class": "torch.nn.Identity", "arguments": [["args", "HERE"]]}, ('{"a":', "}")),
}


@pytest.mark.parametrize("levels", [1_000, 10_000])
@pytest.mark.parametrize("what", DEEP)
def test_what_no_writer_of_ours_could_nest_is_refused(
    what: str, levels: int, load: Callable[..., Any], tmp_path: Path
) -> None:
    node, (before, after) = DEEP[what]
    with contextlib.suppress(SafepointError):
        load(node, STATE)
    rewrite(tmp_path / "model", lambda text: text.replace('"HERE"', before * levels + "null" + after * levels))
    with pytest.raises(CorruptionError):
        safepoint.load_model(tmp_path / "model")


ODD: dict[str, Any] = {
    "nothing": None,
    "a number": 3,
    "a list": [LINEAR],
    "no class": {"arguments": []},
    "a class that is a number": {"class": 3},
    "a reference to nothing": {"same": 0},
    "a reference that is no number": {"same": [LINEAR]},
    "itself": {"class": "torch.nn.Sequential", "id": 0, "children": [["0", {"same": 0}]]},
    "unknown keys": {**LINEAR, "code": "print(1)"},
    "arguments that are a dictionary": {"class": "torch.nn.Linear", "arguments": {"in_features": 2}},
    "arguments that are triples": {"class": "torch.nn.Linear", "arguments": [[1, 2, 3]]},
    "unknown arguments": {"class": "torch.nn.Linear", "arguments": [["nonsense", 2]]},
    "arguments of another kind": {"class": "torch.nn.Linear", "arguments": [["in_features", "x"], ["out_features", 2]]},
    "negative sizes": {"class": "torch.nn.Linear", "arguments": [["in_features", -2], ["out_features", 2]]},
    "a tag that is unknown": {"class": "torch.nn.ReLU", "arguments": [["inplace", {"pickle": "gASV"}]]},
    "a dtype that is none": {"class": "torch.nn.ReLU", "arguments": [["inplace", {"dtype": "torch.load"}]]},
    "a tensor that is not there": {"class": "torch.nn.ReLU", "arguments": [["inplace", {"tensor": "weight2"}]]},
    "an object of a module class": {
        "class": "torch.nn.ReLU",
        "arguments": [["inplace", {"object": ["torch.nn.ReLU", []]}]],
    },
    "unhashable keys": {"class": "torch.nn.ReLU", "arguments": [["inplace", {"dict": [[[1], 2]]}]]},
    "a child in a place that is not there": {"class": "torch.nn.Sequential", "children": [["a.b.c", LINEAR]]},
    "a child called like a method": {"class": "torch.nn.Sequential", "children": [["forward", LINEAR]]},
    "a child with no name": {"class": "torch.nn.Sequential", "children": [["", LINEAR]]},
    "a child with a number for a name": {"class": "torch.nn.Sequential", "children": [[3, LINEAR]]},
    "a child of a layer that has none": {**LINEAR, "children": [["weight", {"class": "torch.nn.ReLU"}]]},
    "an attribute that is a method": {**LINEAR, "attributes": [["", "forward", 3]]},
    "an attribute that is a function": {**LINEAR, "attributes": [["", "extra", {"name": "torch.relu"}]]},
    "an attribute of torch's own": {**LINEAR, "attributes": [["", "_parameters", {"dict": []}]]},
    "an attribute that is a dunder": {**LINEAR, "attributes": [["", "__class__", 3]]},
    "an attribute of nothing": {**LINEAR, "attributes": [["a.b", "x", 3]]},
    "training as an attribute": {**LINEAR, "attributes": [["", "training", "yes"]]},
    "an attribute without a name": {**LINEAR, "attributes": [["", 3, 3]]},
    "a parameter of a negative shape": {
        "class": "torch.nn.ParameterList",
        "items": [[None, {"parameter": [[-1], "float32"]}]],
    },
    "a parameter of no dtype": {"class": "torch.nn.ParameterList", "items": [[None, {"parameter": [[2], "load"]}]]},
    "a model that is a function of nothing": {"class": "torch.nn.Sequential", "positional": 3},
    "positional arguments that are no modules": {"class": "torch.nn.Sequential", "positional": [3]},
}


@pytest.mark.parametrize("what", ODD)
def test_what_describes_no_model_is_refused(what: str, load: Callable[..., Any]) -> None:
    with pytest.raises(SafepointError) as refused:
        load(ODD[what], STATE)
    assert isinstance(refused.value, CorruptionError | UnsupportedError | safepoint.MismatchError), refused.value
    assert RAN == []


FLAGS: dict[str, dict[str, Any]] = {
    "ties of nothing": {"ties": [["weight", "nowhere"]]},
    "ties of two shapes": {"ties": [["weight", "bias"]]},
    "ties that are text": {"ties": "weight"},
    "ties of numbers": {"ties": [[1, 2]]},
    "an empty tie": {"ties": [[]]},
    "frozen parameters that are not there": {"frozen": ["x"]},
    "frozen parameters that are no list": {"frozen": 3},
    "modes of modules that are not there": {"other_mode": ["x"]},
    "a mode that is text": {"training": "yes"},
}


@pytest.mark.parametrize("what", FLAGS)
def test_flags_of_what_is_not_there_are_refused(what: str, load: Callable[..., Any]) -> None:
    with pytest.raises(CorruptionError):
        load(LINEAR, STATE, **FLAGS[what])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weight": np.eye(2)},
        {"weight": np.eye(3), "bias": np.ones(2)},
        {**STATE, "more": np.ones(3)},
        {**STATE, "__safepoint__/hidden/weight": np.ones((2, 2))},
        {**STATE, "__safepoint__/hidden/nothing": np.ones(2)},
        {"weight": np.eye(2), "__safepoint__/hidden/bias": np.ones(3)},
    ],
    ids=range(7),
)
def test_tensors_that_are_not_the_models_are_refused(state: Any, load: Callable[..., Any]) -> None:
    with pytest.raises(
        safepoint.MismatchError | CorruptionError if False else (safepoint.MismatchError, CorruptionError)
    ):
        load(LINEAR, state)


@pytest.mark.parametrize(
    "structure",
    [
        {"kind": "keras", "version": 1},
        {"kind": "torch", "version": 2},
        {"kind": "torch"},
        {"kind": "torch", "version": 1, "class": []},
        {"kind": "torch", "version": 1, "class": {}},
        {},
    ],
    ids=range(6),
)
def test_a_structure_of_another_kind_is_refused(structure: Any, tmp_path: Path) -> None:
    write_model_file(tmp_path / "model", StateTree({}), structure=structure, format="pt")
    with pytest.raises((CorruptionError, UnsupportedError)):
        safepoint.load_model(tmp_path / "model")


def test_nothing_is_built_before_every_name_was_allowed(load: Callable[..., Any]) -> None:
    children = [[str(i), {"class": "tests.hostile.Net"}] for i in range(3)]
    with pytest.raises(UntrustedError):
        load({"class": "torch.nn.Sequential", "children": [*children, ["3", {"class": "os.system"}]]})
    assert RAN == []


def test_nobody_is_told_how_to_allow_what_no_model_needs(load: Callable[..., Any]) -> None:
    for name in ("os.system", "builtins.eval", "subprocess.Popen"):
        with pytest.raises(UntrustedError, match="do not load it") as refused:
            load({"class": name})
        assert "trust=(" not in str(refused.value)
