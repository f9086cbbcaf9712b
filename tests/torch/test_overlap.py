"""`overlap=True`: what only an optimizer's step changes is copied beside training, and never torn."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import safepoint
from safepoint.api import staging

_WIDTH = 1024  # a weight of 4 MiB: large enough to be copied later


def _training(width: int = _WIDTH):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def _step(model, optimizer):
    loss = model(torch.randn(8, _WIDTH)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _manager(path, model, optimizer, **options):
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    return safepoint.CheckpointManager(checkpoint, path, overlap=True, keep=[], **options)


@pytest.fixture
def gate(monkeypatch):
    """Holds late copies back until it is opened."""
    opened = threading.Event()
    real = staging._copy_into

    def wait(*arguments):
        opened.wait(10)
        real(*arguments)

    monkeypatch.setattr(staging, "_copy_into", wait)
    return opened


def test_every_snapshot_holds_the_moment_of_its_save(tmp_path):
    model, optimizer = _training()
    expected = []
    with _manager(tmp_path / "run", model, optimizer) as manager:
        for step in range(6):
            _step(model, optimizer)
            expected.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            manager.save(step)
    for step, state in enumerate(expected):
        fresh, _ = _training()
        safepoint.Checkpoint(model=fresh).restore(tmp_path / "run", at=step)
        assert all(torch.equal(state[name], tensor) for name, tensor in fresh.state_dict().items())


def test_save_returns_before_the_copy_and_the_step_waits_for_it(tmp_path, gate):
    model, optimizer = _training()
    _step(model, optimizer)
    with _manager(tmp_path / "run", model, optimizer) as manager:
        for _ in range(2):  # the trials copy at once
            manager.save().result()
            _step(model, optimizer)
        before = model[0].weight.detach().clone()
        handle = manager.save()
        stepping = threading.Thread(target=_step, args=(model, optimizer))
        stepping.start()
        time.sleep(0.2)
        assert stepping.is_alive()
        assert torch.equal(model[0].weight, before)
        assert not handle.done
        gate.set()
        handle.staged()
        stepping.join()
        assert not torch.equal(model[0].weight, before)
        handle.result()
    fresh, _ = _training()
    safepoint.Checkpoint(model=fresh).restore(tmp_path / "run")
    assert torch.equal(fresh[0].weight, before)


def test_buffers_and_parameters_of_no_optimizer_are_copied_before_save_returns(tmp_path, gate):
    model, _ = _training()
    frozen = torch.nn.Linear(_WIDTH, _WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = safepoint.Checkpoint(model=model, frozen=frozen, optimizer=optimizer)
    manager = safepoint.CheckpointManager(checkpoint, tmp_path / "run", overlap=True)
    for _ in range(2):
        manager.save().result()
        _step(model, optimizer)
    statistics, weight = model[1].running_mean.clone(), frozen.weight.detach().clone()
    manager.save()
    with torch.no_grad():
        model(torch.randn(8, _WIDTH))  # moves the statistics
        frozen.weight.zero_()
    gate.set()
    manager.close()
    checkpoint.restore(tmp_path / "run")
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(frozen.weight, weight)


def test_a_tensor_that_moves_under_the_copy_is_never_committed(tmp_path, gate, capfd):
    model, optimizer = _training()
    manager = _manager(tmp_path / "run", model, optimizer)
    for _ in range(2):
        manager.save().result()
        _step(model, optimizer)
    handle = manager.save()
    with torch.no_grad():
        model[0].weight.add_(1)
    gate.set()
    with pytest.raises(safepoint.UnsupportedError, match=r"model/0.weight changed while it was copied"):
        handle.result()
    assert [snapshot.step for snapshot in safepoint.Repository(tmp_path / "run").snapshots] == [0, 1]
    manager.save().result()  # copied at once from now on
    manager.close()


def test_a_run_that_swaps_weights_between_save_and_step_is_found_out_in_the_first_saves(tmp_path, caplog):
    model, optimizer = _training()
    with _manager(tmp_path / "run", model, optimizer) as manager:
        manager.save()
        model[0].weight.data.mul_(2)  # what torch's own counter does not see
        _step(model, optimizer)
        manager.save()
        _step(model, optimizer)
        handle = manager.save()
        model[0].weight.data.mul_(2)
        handle.result()
    assert len(safepoint.Repository(tmp_path / "run").snapshots) == 3
    assert manager._overlap is not None
    assert not manager._overlap._is_on


def _refuse_threads(monkeypatch, name):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_where_no_thread_can_be_started_it_is_copied_at_once(tmp_path, monkeypatch):
    model, optimizer = _training()
    _refuse_threads(monkeypatch, "safepoint-overlap")
    with _manager(tmp_path / "run", model, optimizer) as manager:
        for _ in range(4):
            _step(model, optimizer)
            handle = manager.save()
            handle.result()
        weight = model[0].weight.detach().clone()
    fresh, _ = _training()
    safepoint.Checkpoint(model=fresh).restore(tmp_path / "run")
    assert torch.equal(fresh[0].weight, weight)


def test_a_save_that_cannot_begin_leaves_the_next_step_free(tmp_path, monkeypatch):
    model, optimizer = _training()
    with _manager(tmp_path / "run", model, optimizer) as manager:
        for _ in range(3):
            _step(model, optimizer)
            manager.save().result()
        _refuse_threads(monkeypatch, "safepoint-save")
        with pytest.raises(safepoint.StoreError, match="no thread can be started"):
            manager.save()
        monkeypatch.undo()
        stepping = threading.Thread(target=_step, args=(model, optimizer), daemon=True)
        stepping.start()
        stepping.join(60)
        assert not stepping.is_alive()
        manager.save().result()


def test_overlap_without_an_optimizer_is_refused(tmp_path):
    with pytest.raises(safepoint.UnsupportedError, match="nothing to overlap"):
        safepoint.CheckpointManager(safepoint.Checkpoint(state={"x": np.zeros(3)}), tmp_path / "run", overlap=True)


def test_a_closed_manager_leaves_the_optimizer_alone(tmp_path):
    model, optimizer = _training()
    manager = _manager(tmp_path / "run", model, optimizer)
    assert optimizer._optimizer_step_pre_hooks
    manager.close()
    assert not optimizer._optimizer_step_pre_hooks
