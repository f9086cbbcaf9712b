"""Whole models by their exported graph: saved here, loaded where the class does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch_models.models import in_new_process
from torch import nn

import safepoint

RUN = """
import sys, torch, safepoint
model = safepoint.load_model(sys.argv[1])
given = torch.load(sys.argv[2])
torch.save([model(*inputs) for inputs in given], sys.argv[3])
print(type(model).__name__, model.training, len(list(model.parameters())))
"""


class Net(nn.Module):
    """A residual network with BatchNorm, Dropout, a buffer that `state_dict` leaves out and a constant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)
        self.register_buffer("scale", torch.full((5,), 0.5), persistent=False)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(x + self.block(x)).mean((2, 3))
        ramp = torch.arange(5, device=x.device, dtype=x.dtype) * torch.tensor([1.0, 2, 3, 4, 5])
        return self.head(self.drop(x)) * self.scale + ramp


class Recurrent(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 8)
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, tokens)

    def forward(self, ids: Any) -> Any:
        out, (h, _) = self.lstm(self.embed(ids))
        return {"logits": self.head(out), "states": [h, None]}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class GPT(nn.Module):
    """A small GPT whose head is its embedding."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Embedding(32, width)
        self.attention = Attention(width, 2)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Any) -> Any:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.attention(self.norm(x))
        return self.head(x + self.mlp(x))


def _net() -> tuple[Any, list[Any]]:
    model = Net(4)
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8))  # running statistics that are not those of a new layer
    return model, [torch.randn(n, 3, *size) for n, size in [(5, (8, 8)), (1, (8, 8)), (7, (12, 9))]]


CASES: dict[str, Any] = {
    "a residual network": _net,
    "an LSTM": lambda: (Recurrent(11), [torch.randint(11, shape) for shape in [(3, 6), (1, 9), (7, 1)]]),
    "a GPT": lambda: (GPT(13, 8), [torch.randint(13, shape) for shape in [(2, 5), (1, 9), (6, 1), (3, 32)]]),
    "an MLP": lambda: (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 2)),
        [torch.randn(n, 4) for n in (3, 1, 8)],
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_a_model_runs_by_its_graph_in_a_process_without_its_class(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[what]()
    model.train()
    random = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    safepoint.save_model(model, tmp_path / "net.safetensors", example_inputs=(inputs[0],))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    model.eval()
    expected = [model(x) for x in inputs]
    torch.save([(x,) for x in inputs], tmp_path / "x")
    if what == "an MLP":  # torch.nn's own layers: the class is known everywhere
        (graph,) = [safepoint.load_model(tmp_path / "net.safetensors", form="graph")]
        found = [graph(x) for x in inputs]
    else:
        parameters = len(list(model.parameters()))
        said = in_new_process(RUN, tmp_path / "net.safetensors", tmp_path / "x", tmp_path / "y")
        assert said == f"GraphModel False {parameters}\n"
        found = torch.load(tmp_path / "y")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
