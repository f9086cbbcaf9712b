"""`mmap=True`: weights in the file's own pages, verified, and never written to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch_models.models import assert_same_state, in_new_process
from torch import nn

import safepoint
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository.model_file import write_model_file
from safepoint.tree import StateTree, Tensor

SIZE = 1 << 20


def network() -> Any:
    torch.manual_seed(0)
    odd = nn.ParameterDict({"short": nn.Parameter(torch.randn(3).half()), "long": nn.Parameter(torch.ones(5))})
    model = nn.ModuleDict({"large": nn.Linear(1024, 1024), "odd": odd, "norm": nn.BatchNorm1d(7)})
    model["twice"] = model["large"]
    return model.eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    safepoint.save_model(network(), tmp_path / "model")
    return tmp_path / "model"


def pages(file: Path) -> list[tuple[int, int, int]]:
    """(start, end, bytes that are copies, of this process alone) of each mapping of a file."""
    found: list[tuple[int, int, int]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            here = line.endswith(f" {file}")
            start, end = (int(part, 16) for part in words[0].split("-"))
            if here:
                found.append((start, end, 0))
        elif here and words[0] == "Anonymous:":
            found[-1] = (*found[-1][:2], int(words[1]) << 10)
    return found


def test_weights_are_the_files_pages_and_no_memory_of_their_own(file: Path) -> None:
    model = safepoint.load_model(file, mmap=True)
    assert_same_state(network(), model)
    ((start, end, own),) = pages(file)
    assert own == 0
    for name, tensor in model.state_dict().items():
        assert start <= tensor.data_ptr() < end, name
        assert tensor.data_ptr() % tensor.itemsize == 0
    assert model["twice"] is model["large"]
    del model, tensor
    assert pages(file) == []


def test_what_is_written_to_them_never_reaches_the_file(file: Path) -> None:
    before = hashlib.sha256(file.read_bytes()).digest()
    model, other = safepoint.load_model(file, mmap=True), safepoint.load_model(file, mmap=True)
    optimizer = torch.optim.SGD(model["large"].parameters(), 0.1)
    model["large"](torch.randn(2, 1024)).square().mean().backward()
    optimizer.step()
    model["norm"].running_mean.fill_(3)
    model["norm"].running_mean.numpy()[:] = 4
    assert not torch.equal(model["large"].weight, other["large"].weight)
    assert hashlib.sha256(file.read_bytes()).digest() == before
    assert_same_state(network(), other)
    safepoint.save_model(model, file)  # onto the very file that its weights lie in
    assert_same_state(model, safepoint.load_model(file))
    assert_same_state(network(), other)


def test_every_byte_is_verified_all_the_same(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    data = 8 + int.from_bytes(raw[:8], "little")
    for place in (data, data + 2 * SIZE, len(raw) - 1):
        broken = raw.copy()
        broken[place] ^= 1
        file.write_bytes(broken)
        with pytest.raises(CorruptionError, match="is damaged"):
            safepoint.load_model(file, mmap=True)
    file.write_bytes(raw[:-10])
    with pytest.raises(CorruptionError):
        safepoint.load_model(file, mmap=True)


def test_a_graph_is_mapped_too_and_converted_where_that_is_asked(file: Path, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
    x = torch.randn(3, 64)
    safepoint.save_model(model, tmp_path / "graph", example_inputs=(x,))
    graph = safepoint.load_model(tmp_path / "graph", form="graph", mmap=True)
    torch.testing.assert_close(graph(x), model(x))
    ((start, end, _),) = pages(tmp_path / "graph")
    assert start <= graph.get_parameter("0.weight").data_ptr() < end
    assert safepoint.load_model(tmp_path / "graph", mmap=True, dtype="float64")[0].weight.dtype == torch.float64


FORKED = """
import sys, torch, safepoint
model = safepoint.load_model(sys.argv[1], mmap=True)
print(float(model["large"].weight.detach().double().sum()))
"""


def test_another_process_maps_the_same_file(file: Path) -> None:
    model = safepoint.load_model(file, mmap=True)
    assert float(in_new_process(FORKED, file)) == float(model["large"].weight.detach().double().sum())


def test_other_frameworks_say_that_they_copy(tmp_path: Path) -> None:
    state = StateTree({"w": Tensor.of(np.ones(3, np.float32))})
    write_model_file(tmp_path / "model", state, structure={"kind": "keras"}, format="keras")
    with pytest.raises(UnsupportedError, match="cannot be mapped"):
        safepoint.load_model(tmp_path / "model", mmap=True)
