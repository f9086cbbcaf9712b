from __future__ import annotations

import copy
import functools
import inspect
import logging
import pickle
import random
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch_models.models import assert_same_state, there_and_back
from torch import nn

import safepoint
from safepoint.errors import UnsupportedError, UntrustedError


class Block(nn.Module):
    def __init__(self, channels: int, stride: int = 1, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(channels)
        self.short = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), norm(channels)) if stride > 1 else None

    def forward(self, x: Any) -> Any:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + (x if self.short is None else self.short(x)))


@safepoint.register
class ResNet(nn.Module):
    def __init__(self, depths: list[int], channels: int = 4, *, norm: Any = nn.BatchNorm2d, classes: int = 10) -> None:
        super().__init__()
        depths.insert(0, 1)  # constructors do such things to their arguments
        self.stem = nn.Conv2d(3, channels, 3)
        self.stages = nn.ModuleList(nn.Sequential(*[Block(channels, 1 + i, norm) for i in range(n)]) for n in depths)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


@safepoint.register
@dataclass
class Config:
    vocabulary: int = 50
    width: int = 16
    heads: int = 2
    layers: int = 2
    activation: Any = nn.GELU
    dtype: torch.dtype = torch.float32


@safepoint.register("tests.GPT")
class GPT(nn.Module):
    """Tied embeddings, a causal mask that is not saved by PyTorch, and an attribute set on a layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Parameter(torch.randn(32, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(config.width, config.heads, 32, 0.1, config.activation(), batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.blocks.layers[0].linear1.SCALE = 1
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.triu(torch.ones(32, 32, dtype=torch.bool), 1), persistent=False)

    def forward(self, ids: Any) -> Any:
        n = ids.shape[1]
        x = self.tokens(ids) + self.places[:n]
        return self.head(self.norm(self.blocks(x, self.mask[:n, :n])))


def test_a_resnet_predicts_and_trains_on_as_before(tmp_path: Path) -> None:
    model = ResNet([2, 1], norm=functools.partial(nn.BatchNorm2d, eps=1e-3))
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()
    loaded = there_and_back(model, tmp_path)
    assert_same_state(model, loaded)
    losses = []
    for each in (model, loaded):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        torch.manual_seed(0)
        losses.append([_step(each, optimizer, x) for _ in range(3)])
    assert losses[0] == losses[1]
    assert_same_state(model, loaded)


def _step(model: Any, optimizer: Any, x: Any) -> float:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_a_gpt_keeps_its_tied_embeddings_and_its_mask(tmp_path: Path) -> None:
    model = GPT(Config(layers=1)).eval()
    loaded = there_and_back(model, tmp_path)
    ids = torch.randint(0, 50, (2, 7))
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.head.weight is loaded.tokens.weight
    assert loaded.config == model.config
    assert "mask" not in loaded.state_dict()
    assert_same_state(model, loaded)


def test_other_tools_read_the_tensors_by_their_own_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = GPT(Config())
    safepoint.save_model(model, tmp_path / "model")
    found = load_file(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        if name != "head.weight":  # tied: stored once, under its first name
            assert torch.equal(found[name], tensor), name
    rest = found.keys() - model.state_dict().keys()
    assert all(name.startswith("__safepoint__/") for name in rest)


class Plain(nn.Module):
    def __init__(self, width: int = 4, p: float = 0.5) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.drop = nn.Dropout(p)
        self.width = width

    def forward(self, x: Any) -> Any:
        return self.drop(self.linear(x))


class Needs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)


def test_a_class_nobody_allowed_is_saved_and_loads_where_it_is_allowed(tmp_path: Path) -> None:
    model = Plain()
    safepoint.save_model(model, tmp_path / "model")
    with pytest.raises(UntrustedError, match="Plain") as refused:
        safepoint.load_model(tmp_path / "model")
    assert "custom_objects={'Plain': Plain}" in str(refused.value)
    assert "@safepoint.register" in str(refused.value)
    for allowed in (
        {"custom_objects": {"Plain": Plain}},
        {"custom_objects": {f"{__name__}.Plain": Plain}},
        {"trust": ("tests",)},
        {"trust": __name__},
    ):
        assert_same_state(model, safepoint.load_model(tmp_path / "model", **allowed))
    with pytest.raises(UntrustedError):
        safepoint.load_model(tmp_path / "model", trust=("test",))


def test_arguments_are_given_with_init_where_the_class_is_not_registered(tmp_path: Path) -> None:
    model = Needs(6)
    with pytest.raises(UnsupportedError, match=r"arguments of its constructor \(width\) were not kept") as refused:
        safepoint.save_model(model, tmp_path / "model")
    assert "init=" in str(refused.value)
    assert "example_inputs=" in str(refused.value)
    assert not (tmp_path / "model").exists()
    with pytest.raises(UnsupportedError, match=r"linear does not come back|unexpected keyword"):
        safepoint.save_model(model, tmp_path / "model", init={"width": 7, "nonsense": 3})
    assert_same_state(model, there_and_back(model, tmp_path, init={"width": 6}, trust=__name__))


def test_what_was_changed_after_construction_comes_back(tmp_path: Path) -> None:
    model = Plain(4)
    model.linear = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4))
    model.drop.p = 0.25
    model.width = 12
    model.extra = nn.Embedding(3, 4)
    model.threshold = (0.5, [None, "text"])
    loaded = there_and_back(model, tmp_path, custom_objects={"Plain": Plain})
    assert_same_state(model, loaded)
    assert (loaded.width, loaded.threshold, loaded.drop.p) == (12, (0.5, [None, "text"]), 0.25)


def test_what_cannot_be_kept_of_an_object_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Plain(4)
    model.last = torch.rand(3)
    with caplog.at_level(logging.WARNING, "safepoint"):
        safepoint.save_model(model, tmp_path / "model")
    assert "last was set after construction" in caplog.text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.linear.register_forward_hook(lambda *_: None), "forward hooks"),
        (lambda m: setattr(m.linear, "forward", lambda x: x), "forward was replaced"),
        (lambda m: setattr(m.linear, "note", "mine"), "note was changed after construction"),
        (lambda m: setattr(m.linear, "weight", nn.Parameter(torch.rand(9, 9))), "weight is"),
        (lambda m: torch.nn.utils.parametrizations.weight_norm(m.linear), "Parametrized"),
        (lambda m: setattr(m, "linear", nn.LazyLinear(3)), "no shape yet"),
        (lambda m: m.linear.register_buffer("more", torch.rand(2)), "more is"),
    ],
)
def test_a_layer_that_is_no_longer_its_class_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 3)})
    change(model)
    with pytest.raises(UnsupportedError) as refused:
        safepoint.save_model(model, tmp_path / "model")
    assert why in str(refused.value)
    assert "linear" in str(refused.value)
    assert refused.value.hint
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_a_quantised_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        safepoint.save_model(nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(3, 3)), tmp_path / "model")


@safepoint.register
class Composed(nn.Module):
    def __init__(self, body: nn.Module, *heads: nn.Module, scale: Any = None, activation: Any = torch.relu) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(heads)
        self.scale = scale
        self.activation = activation

    def forward(self, x: Any) -> Any:
        x = self.activation(self.body(x)) * self.scale
        return sum(head(x) for head in self.heads)


def test_modules_tensors_and_functions_may_be_arguments(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    model = Composed(nn.Sequential(nn.Linear(4, 4), shared), shared, nn.Linear(4, 4), scale=torch.rand(4))
    model.body[0].weight.requires_grad_(False)
    loaded = there_and_back(model, tmp_path)
    assert_same_state(model, loaded)
    assert loaded.body[1] is loaded.heads[0]
    assert torch.equal(loaded.scale, model.scale)
    assert loaded.activation is torch.relu
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), model(x))


def test_a_lambda_as_an_argument_is_refused_by_its_name(tmp_path: Path) -> None:
    model = Composed(nn.Identity(), activation=lambda x: x)
    with pytest.raises(UnsupportedError, match=r"activation.*code without a name"):
        safepoint.save_model(model, tmp_path / "model")


def test_shared_modules_and_tied_parameters_stay_one(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight
    loaded = there_and_back(model, tmp_path)
    assert loaded[0] is loaded[1][1]
    assert loaded[3].weight is loaded[2].weight
    assert loaded[3].bias is not loaded[2].bias
    assert_same_state(model, loaded)


def test_modes_frozen_parameters_and_mixed_precision_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4).half(), nn.BatchNorm1d(4).double(), nn.Linear(4, 4).to(torch.bfloat16))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model.append(nn.ParameterList([nn.Parameter(torch.rand(3, dtype=torch.complex64))]))
    assert_same_state(model, there_and_back(model, tmp_path))


def test_dtype_converts_the_floating_point_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    for dtype in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        loaded = there_and_back(model, tmp_path, dtype=dtype, device="cpu")
        assert loaded[0].weight.dtype == torch.bfloat16
        assert loaded[1].num_batches_tracked.dtype == torch.int64
    for wrong in ("int8", torch.int32, "no_such", 3):
        with pytest.raises(UnsupportedError, match="dtype"):
            safepoint.load_model(tmp_path / "model", dtype=wrong)
    with pytest.raises(UnsupportedError, match="cannot be put on"):
        safepoint.load_model(tmp_path / "model", device="nowhere")


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.noise = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.rand(2) + random.random() + np.random.rand(), persistent=False)


def test_saving_and_loading_leave_the_programs_random_numbers_alone(tmp_path: Path) -> None:
    model = Draws()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = (torch.rand(3), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    loaded = there_and_back(model, tmp_path, custom_objects={"Draws": Draws})
    found = (torch.rand(3), random.random(), np.random.rand())
    assert torch.equal(expected[0], found[0])
    assert expected[1:] == found[1:]
    assert torch.equal(loaded.table, model.table)
    assert_same_state(model, loaded)


class WithExtra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.steps = [0]

    def get_extra_state(self) -> Any:
        return {"steps": self.steps[0]}

    def set_extra_state(self, state: Any) -> None:
        self.steps = [state["steps"]]


def test_extra_state_comes_back(tmp_path: Path) -> None:
    model = WithExtra()
    model.steps = [17]
    assert there_and_back(model, tmp_path, trust=__name__).steps == [17]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [functools.partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compile", "DataParallel"]
)
def test_wrappers_are_looked_through(wrap: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model._compile_kwargs = {"backend": "eager"}  # as it is where Lightning was imported
    assert_same_state(model, there_and_back(wrap(model), tmp_path))
    whole = nn.Sequential(wrap(model), nn.Linear(3, 3))
    assert_same_state(nn.Sequential(model, whole[1]), there_and_back(whole, tmp_path))


def test_loaded_parameters_are_the_memory_that_was_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    loaded = there_and_back(model, tmp_path)
    assert loaded[0].weight.is_leaf
    assert loaded[0].weight.data_ptr() % 64 == 0
    loaded[0].weight.data.add_(1)
    assert torch.equal(loaded[0].weight, model[0].weight + 1)


def test_a_registered_class_behaves_as_before() -> None:
    assert list(inspect.signature(ResNet).parameters) == ["depths", "channels", "norm", "classes"]
    depths = [1]
    model = ResNet(depths)
    assert depths == [1, 1]
    for twin in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert_same_state(model, twin)
    with pytest.raises(TypeError):
        ResNet()


def test_copies_are_saved_like_their_originals(tmp_path: Path) -> None:
    model = ResNet([1], 5)
    assert_same_state(model, there_and_back(copy.deepcopy(model), tmp_path))
    composed = Composed(nn.Linear(4, 4), scale=2.0)
    twin = copy.deepcopy(composed)
    twin.body.weight.data.zero_()
    assert_same_state(twin, there_and_back(twin, tmp_path))
    assert_same_state(model, there_and_back(pickle.loads(pickle.dumps(model)), tmp_path))


def test_a_subclass_of_a_registered_class_is_its_own(tmp_path: Path) -> None:
    class Sub(ResNet):
        def __init__(self, width: int) -> None:
            super().__init__([1], width)

    with pytest.raises(UnsupportedError, match=r"\(width\) were not kept"):
        safepoint.save_model(Sub(3), tmp_path / "model")
    registered = safepoint.register("tests.Sub")(Sub)
    model = registered(3)
    assert_same_state(model, there_and_back(model, tmp_path))


def test_a_definition_that_runs_again_replaces_the_first(tmp_path: Path) -> None:
    def cell() -> Any:
        class Net(nn.Module):
            def __init__(self, n: int) -> None:
                super().__init__()
                self.linear = nn.Linear(n, n)

        return safepoint.register(Net)

    first, second = cell(), cell()
    assert_same_state(model := first(3), there_and_back(model, tmp_path))
    assert type(safepoint.load_model(tmp_path / "model")) is second


@safepoint.register
class Copies(nn.Module):
    """Layers copied by its constructor, and a table that no file holds, computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))
        self.scale = nn.Parameter(torch.linspace(0, 1, 3))
        self.register_buffer("table", self.scale.data.clone(), persistent=False)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x) * self.table
        return x


def test_what_a_constructor_copies_comes_back(tmp_path: Path) -> None:
    model = Copies()
    for layer in model.layers:
        nn.init.normal_(layer.weight)
    safepoint.save_model(model, tmp_path / "m")
    again = safepoint.load_model(tmp_path / "m")
    assert torch.equal(again(torch.ones(2, 3)), model(torch.ones(2, 3)))


def test_dataclasses_and_named_tuples_describe_models(tmp_path: Path) -> None:
    pair = safepoint.register("tests.Pair")(namedtuple("Pair", "left right"))  # noqa: PYI024 — what old code has

    @safepoint.register("tests.Net")
    @dataclass(eq=False)
    class Net(nn.Module):
        sizes: Any
        bias: bool = True

        def __post_init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(self.sizes.left, self.sizes.right, self.bias)

    model = Net(pair(3, 4), bias=False)
    loaded = there_and_back(model, tmp_path)
    assert loaded.sizes == pair(3, 4)
    assert_same_state(model, loaded)
