"""Generators and torch's global random state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch.saving import freeze, put, save

from safepoint.adapters import Scope, random_states
from safepoint.adapters import torch as adapter
from safepoint.adapters.torch import generators
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Tensor


def test_a_generator_goes_on_where_it_was() -> None:
    source = torch.Generator().manual_seed(3)
    torch.rand(5, generator=source)
    saved = save(source)
    expected = torch.rand(5, generator=source)
    target = torch.Generator().manual_seed(4)
    assert put(saved, target) is target
    assert torch.equal(torch.rand(5, generator=target), expected)


def test_half_drawn_normal_numbers_are_kept() -> None:
    source = torch.Generator().manual_seed(3)
    torch.randn(1, generator=source)
    target = torch.Generator()
    put(save(source), target)
    assert torch.equal(torch.randn(7, generator=source), torch.randn(7, generator=target))


def test_a_generator_of_another_device_is_refused() -> None:
    saved = save(torch.Generator())
    leaves = {**saved.leaves, "device": "cuda"}
    with pytest.raises(MismatchError, match="another device"):
        put(type(saved)(leaves, saved.skeleton), torch.Generator())


def test_a_state_of_another_size_is_a_difference() -> None:
    saved = save(torch.Generator())
    short = Tensor.of(np.zeros(16, np.uint8))
    with pytest.raises(MismatchError) as caught:
        put(type(saved)({**saved.leaves, "state": short}, saved.skeleton), torch.Generator())
    assert "state" in caught.value.differs


def test_the_state_of_a_generator_is_not_written_past_it() -> None:
    leaf = adapter.to_tree(torch.Generator(), Scope()).tensors["state"]
    assert leaf.write is None
    assert leaf.memory is None


def test_the_global_state_comes_back() -> None:
    state = random_states()["torch"]
    saved = freeze(state.capture())
    expected = torch.randn(4)
    torch.manual_seed(99)
    state.restore(saved)
    assert torch.equal(torch.randn(4), expected)


def test_each_initialised_device_has_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {0: torch.arange(16, dtype=torch.uint8), 1: torch.ones(16, dtype=torch.uint8)}
    fake = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_rng_state=lambda index: states[index].clone(),
        set_rng_state=lambda state, index: states.__setitem__(index, state),
    )
    monkeypatch.setattr(torch, "cuda", fake)
    saved = freeze(generators.RANDOM_STATES[0].capture())
    assert set(saved.leaves) == {"cpu", "cuda/0", "cuda/1"}
    states[1] = torch.zeros(16, dtype=torch.uint8)
    generators.RANDOM_STATES[0].restore(saved)
    assert states[1].sum() == 16


def test_a_device_that_is_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    saved = generators.RANDOM_STATES[0].capture()
    leaves = {**saved.leaves, "cuda/7": saved.leaves["cpu"]}
    generators.RANDOM_STATES[0].restore(freeze(type(saved)(leaves)))
    assert "cuda/7" in caplog.text


def test_a_bare_loader_is_refused_with_the_hint() -> None:
    loader: Any = torch.utils.data.DataLoader([1, 2, 3])
    assert adapter.handles(loader)
    with pytest.raises(UnsupportedError) as caught:
        adapter.to_tree(loader, Scope())
    assert caught.value.hint is not None
    assert "safepoint.Resumable(loader)" in caught.value.hint


def test_a_loader_that_keeps_its_position_is_not_ours() -> None:
    class Stateful(torch.utils.data.DataLoader):
        def state_dict(self) -> Any: ...
        def load_state_dict(self, state: Any) -> None: ...

    assert not adapter.handles(Stateful([1]))
