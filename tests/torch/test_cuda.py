"""Copies from CUDA, against a pretended device: tensors that say they are elsewhere, streams that run when asked."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import safepoint
from safepoint.adapters.torch import cuda, overlap, tensors
from safepoint.api.staging import Staging
from safepoint.store import aligned_buffer
from safepoint.tree import Branch, StateTree


class PretendedStream:
    """Work that is queued, and done when somebody waits for it."""

    def __init__(self, device: object, log: list[str]) -> None:
        self.log = log
        self.queued: list = []
        self.waits_for: list[PretendedStream] = []

    def wait_stream(self, other: PretendedStream) -> None:
        self.log.append("wait_stream")
        self.waits_for.append(other)

    def record_event(self):
        self.log.append("record_event")
        return self

    def synchronize(self) -> None:
        for other in self.waits_for:
            other.synchronize()
        queued, self.queued = self.queued, []
        for work in queued:
            work()


class PretendedCuda:
    """What the module under test asks of `torch.cuda`."""

    def __init__(self, *, refuses_to_pin: bool = False) -> None:
        self.log: list[str] = []
        self.main = PretendedStream("main", self.log)
        self.pinned: dict[int, int] = {}
        self.result = 1 if refuses_to_pin else 0
        self.side: PretendedStream | None = None

    def Stream(self, device: object) -> PretendedStream:  # noqa: N802
        self.side = PretendedStream(device, self.log)
        return self.side

    def current_stream(self, device: object) -> PretendedStream:
        return self.main

    @contextmanager
    def stream(self, stream: PretendedStream):
        """Copies in here are queued on `stream`."""
        real = torch.Tensor.copy_

        def later(target, source, *, non_blocking):
            assert non_blocking
            self.log.append("copy")
            stream.queued.append(lambda: real(target, source))
            return target

        torch.Tensor.copy_ = later
        try:
            yield
        finally:
            torch.Tensor.copy_ = real

    def cudart(self) -> PretendedCuda:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if not self.result:
            self.pinned[address] = size
        return self.result

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.pinned[address]
        return 0


@pytest.fixture
def device(monkeypatch):
    pretended = PretendedCuda()
    pretend(pretended, monkeypatch)
    return pretended


def pretend(device: PretendedCuda, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "_cuda", device)
    monkeypatch.setattr(cuda, "_streams", {})
    monkeypatch.setattr(cuda, "_pinned", {})
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: device.log.append("record_stream"))
    for module in (cuda, tensors, overlap):
        monkeypatch.setattr(module, "is_on_device", lambda tensor: tensor.is_contiguous())
    monkeypatch.setattr(tensors, "_is_dense", lambda tensor: False)
    monkeypatch.setattr(tensors, "dense_bytes", lambda tensor: None)
    monkeypatch.setattr(tensors, "_read", lambda tensor: tensor.detach().reshape(-1).view(torch.uint8).numpy())


def tree(*values: torch.Tensor) -> StateTree:
    return StateTree({str(i): tensors.leaf(value) for i, value in enumerate(values)}, Branch("dict"))


def test_a_copy_is_ordered_behind_the_device_own_work_and_waited_for(device):
    weight = torch.zeros(300_000)
    device.main.queued.append(lambda: weight.fill_(7))  # a kernel that has not run yet
    staged = Staging().copy(tree(weight))
    assert staged.done.done()
    assert (staged.tree.tensors["0"].numpy() == 7).all()
    assert device.log == ["wait_stream", "copy", "record_stream", "record_event"]


def test_all_copies_begin_before_the_first_is_waited_for(device):
    Staging().copy(tree(torch.ones(300_000), torch.ones(10), torch.ones(300_000)))
    assert [word for word in device.log if word == "copy"] == ["copy"] * 3


def test_a_late_copy_has_begun_when_save_returns_and_is_waited_for_elsewhere(device):
    weight = torch.full((300_000,), 3.0)
    staged = Staging().copy(tree(weight), later={"0"})
    assert "copy" in device.log
    assert not staged.done.done()
    staged.go_on()
    staged.done.result(10)
    assert (staged.tree.tensors["0"].numpy() == 3).all()


def test_staging_memory_is_pinned_once_and_released_with_it(device):
    staging = Staging()
    staging.copy(tree(torch.ones(1000), torch.ones(2000)))
    staging.copy(tree(torch.ones(1000), torch.ones(2000)))
    assert len(device.pinned) == 1
    staging.free()
    assert device.pinned == {}


def test_a_driver_that_does_not_pin_is_no_error(monkeypatch):
    device = PretendedCuda(refuses_to_pin=True)
    pretend(device, monkeypatch)
    staged = Staging().copy(tree(torch.arange(5)))
    assert staged.tree.tensors["0"].numpy().tolist() == [0, 1, 2, 3, 4]
    assert device.pinned == {}


def test_tied_tensors_on_a_device_are_copied_once(device):
    weight = torch.ones(1000)
    staged = Staging().copy(tree(weight, weight)).tree.tensors
    assert device.log.count("copy") == 1
    assert np.shares_memory(staged["0"].numpy(), staged["1"].numpy())


@pytest.mark.parametrize("value", [torch.tensor(1.5), torch.zeros(0, 3), torch.ones(3, 5, dtype=torch.bfloat16)])
def test_scalars_empty_tensors_and_every_dtype(device, value):
    staged = Staging().copy(tree(value)).tree.tensors["0"]
    assert staged.read().tobytes() == value.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_run_with_overlap_saves_the_moment_of_each_save(device, tmp_path):
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    expected = []
    with safepoint.CheckpointManager(checkpoint, tmp_path / "run", overlap=True, keep=[]) as manager:
        for step in range(5):
            model(torch.randn(4, 600)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            expected.append(model.weight.detach().clone())
            manager.save(step)
    repository = safepoint.Repository(tmp_path / "run")
    for step, weight in enumerate(expected):
        manifest = repository.manifest(repository.resolve(step))
        loaded = manifest.load(["model/weight"]).tensors["model/weight"].numpy()
        assert (loaded == weight.numpy()).all()


def test_pinning_knows_the_memory_behind_a_part_of_it(device):
    arena = aligned_buffer(1 << 16)
    cuda.pin(arena[100:200])
    cuda.pin(arena[300:400][10:20])
    assert device.pinned == {arena.ctypes.data: 1 << 16}
