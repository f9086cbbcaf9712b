"""What real modules are made of: parametrizations, masks, strange tensors and layouts, through a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch.test_tensors import DTYPE_NAMES, tensor_of
from torch import nn
from torch.nn.utils import parametrizations, prune

import safepoint

DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def names(model: Any) -> list[str]:
    return [name.removeprefix("model/") for name in safepoint.Checkpoint(model=model).capture().leaves]


def pruned(layer: Any) -> Any:
    prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    prune.random_unstructured(layer, "bias", amount=1)  # type: ignore[no-untyped-call]
    return layer


ORIGINAL = "parametrizations.weight.original"
PARTS: dict[str, tuple[Any, list[str]]] = {
    "weight norm": (parametrizations.weight_norm, ["bias", f"{ORIGINAL}0", f"{ORIGINAL}1"]),
    "spectral norm": (
        parametrizations.spectral_norm,
        ["bias", ORIGINAL, "parametrizations.weight.0._u", "parametrizations.weight.0._v"],
    ),
    "orthogonal": (parametrizations.orthogonal, ["bias", ORIGINAL, "parametrizations.weight.0.base"]),
    "orthogonal by Cayley": (
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
        ["bias", ORIGINAL, "parametrizations.weight.0.base"],
    ),
    "two, one on the other": (
        lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
        ["bias", f"{ORIGINAL}0", f"{ORIGINAL}1", "parametrizations.weight.1._u", "parametrizations.weight.1._v"],
    ),
    "weight norm by hooks": (nn.utils.weight_norm, ["bias", "weight_g", "weight_v"]),
    "spectral norm by hooks": (nn.utils.spectral_norm, ["bias", "weight_orig", "weight_u", "weight_v"]),
    "pruned": (pruned, ["weight_orig", "bias_orig", "weight_mask", "bias_mask"]),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("build, expected", PARTS.values(), ids=PARTS)
def test_a_reparametrized_layer_comes_back_and_trains_on(build: Any, expected: list[str], tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = build(nn.Linear(4, 4))
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    def train(model: Any, optimizer: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(DATA).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model, optimizer = make(0)
    train(model, optimizer, 2)
    assert sorted(names(model)) == sorted(expected)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path)
    again, other = make(1)
    safepoint.Checkpoint(model=again, optimizer=other).restore(tmp_path)
    assert train(again, other, 3) == train(model, optimizer, 3)
    assert torch.equal(again.eval()(DATA), model.eval()(DATA))


def test_a_parametrized_layer_and_a_plain_one_differ_by_name(tmp_path: Path) -> None:
    safepoint.Checkpoint(model=parametrizations.weight_norm(nn.Linear(4, 4))).save(tmp_path)
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(model=nn.Linear(4, 4)).restore(tmp_path)
    assert caught.value.missing == ("model/weight",)
    assert caught.value.unexpected == (f"model/{ORIGINAL}0", f"model/{ORIGINAL}1")


class Subclass(torch.Tensor):
    """A subclass with `__torch_function__` of its own: bytes are bytes."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


BUFFERS: dict[str, Any] = {
    **{name: lambda name=name: tensor_of(name) for name in DTYPE_NAMES},
    "zero-dim": lambda: torch.tensor(3.5),
    "zero-size": lambda: torch.empty(0, 3),
    "conj view": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    "neg view": lambda: torch.randn(4, dtype=torch.complex64).conj().imag,
    "expanded": lambda: torch.randn(1, 3).expand(4, 3),
    "overlapping": lambda: torch.randn(6).as_strided((4, 3), (1, 1)),
    "requires grad": lambda: torch.randn(3, requires_grad=True),
    "channels last": lambda: torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "subclass": lambda: torch.randn(3).as_subclass(Subclass),
    "shared memory": lambda: torch.randn(3).share_memory_(),
}


def content(tensor: Any) -> bytes:
    return safepoint.Checkpoint(x={"t": tensor}).capture().tensors["x/t"].read().tobytes()


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_a_buffer_of_every_kind_is_restored_in_place(make: Any, tmp_path: Path) -> None:
    def module() -> Any:
        model = nn.Module()
        model.register_buffer("buffer", make())
        return model

    torch.manual_seed(0)
    source = module()
    safepoint.Checkpoint(model=source).save(tmp_path)
    torch.manual_seed(1)
    model = module()
    live, stride, kind = model.buffer, model.buffer.stride(), type(model.buffer)
    storage = live.untyped_storage()
    storage.fill_(0)
    safepoint.Checkpoint(model=model).restore(tmp_path)
    assert content(model.buffer) == content(source.buffer)
    assert model.buffer is live
    assert (model.buffer.stride(), type(model.buffer)) == (stride, kind)
    assert model.buffer.requires_grad == source.buffer.requires_grad
    assert model.buffer.untyped_storage().data_ptr() == storage.data_ptr()


def test_an_inference_module_comes_back(tmp_path: Path) -> None:
    with torch.inference_mode():
        source, model = nn.Linear(4, 4), nn.Linear(4, 4)
    safepoint.Checkpoint(model=source).save(tmp_path)
    safepoint.Checkpoint(model=model).restore(tmp_path)
    assert torch.equal(model.weight, source.weight)
    assert model.weight.is_inference()


class Packed(torch.Tensor):
    """A wrapper without memory of its own, as quantization libraries make them."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def masked() -> Any:
    from torch.masked import masked_tensor

    return masked_tensor(torch.randn(2), torch.tensor([True, False]))


REFUSED = {
    "sparse COO": (lambda: torch.eye(3).to_sparse(), "sparse_coo", "to_dense"),
    "sparse CSR": (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr", "to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested", "offsets"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        "nested",
        "offsets",
    ),
    "quantized": (lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8), "quantized", "int_repr"),
    "quantized by channel": (
        lambda: torch.quantize_per_channel(torch.randn(3, 2), torch.ones(3), torch.zeros(3), 0, torch.qint8),
        "quantized",
        "int_repr",
    ),
    "packed": (lambda: Packed(torch.zeros(3, dtype=torch.int8)), "Packed", "plain tensors inside"),
    "masked": (masked, "MaskedTensor", "data and mask"),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device", "to_empty"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make, message, way_out", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_by_name_with_a_way_out(
    make: Any, message: str, way_out: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Module())
    model[1].register_buffer("strange", make())
    with pytest.raises(safepoint.UnsupportedError, match=f"model: 1.strange cannot be saved.*{message}") as caught:
        safepoint.Checkpoint(model=model).save(tmp_path)
    assert way_out in str(caught.value.hint)
    with pytest.raises(safepoint.UnsupportedError, match=f"'strange' cannot be saved.*{message}"):
        safepoint.Checkpoint(state={"strange": make()}).save(tmp_path)
    assert not safepoint.Repository(tmp_path).exists


def test_a_half_built_module_has_what_it_has(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_parameter("later", None)
    model.register_buffer("cache", None)
    model.layer = nn.Linear(2, 2, bias=False)
    assert names(model) == ["layer.weight"]
    safepoint.Checkpoint(model=model).save(tmp_path)
    model.register_parameter("later", nn.Parameter(torch.zeros(2)))
    with pytest.raises(safepoint.MismatchError, match=r"missing\s+model/later"):
        safepoint.Checkpoint(model=model).restore(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_recurrent_modules_come_back(tmp_path: Path) -> None:
    def make() -> Any:
        return {"scripted": torch.jit.script(nn.Linear(4, 4)), "recurrent": nn.LSTM(4, 3, 2, bidirectional=True)}

    source, model = make(), make()
    safepoint.Checkpoint(**source).save(tmp_path)
    safepoint.Checkpoint(**model).restore(tmp_path)
    assert torch.equal(model["scripted"](DATA), source["scripted"](DATA))
    assert torch.equal(model["recurrent"](DATA)[0], source["recurrent"](DATA)[0])


def test_an_overlapping_view_takes_only_what_it_can_hold(tmp_path: Path) -> None:
    apart, model = nn.Module(), nn.Module()
    apart.register_buffer("window", torch.arange(12.0).reshape(4, 3))
    model.register_buffer("window", torch.zeros(6).as_strided((4, 3), (1, 1)))
    safepoint.Checkpoint(model=apart).save(tmp_path)
    with pytest.raises(safepoint.MismatchError, match="share memory"):
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert not np.any(model.window.numpy())
