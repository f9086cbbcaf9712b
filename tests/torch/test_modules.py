"""Modules: clean names, tied weights, extra states, hooks; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.torch.saving import adapter, put, save
from torch import nn

from safepoint.adapters import Scope
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor


def two_layers(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def equal(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_names_are_those_of_the_state_dict() -> None:
    model = two_layers()
    assert list(save(model).leaves) == list(model.state_dict())


def test_a_restore_writes_into_the_same_parameters() -> None:
    source, model = two_layers(0), two_layers(1)
    before = [id(p) for p in model.parameters()]
    assert put(save(source), model) is model
    assert [id(p) for p in model.parameters()] == before
    assert equal(source, model)
    assert all(p.requires_grad for p in model.parameters())


def test_buffers_that_are_not_persistent_stay_out() -> None:
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(1))
    model.register_buffer("cache", torch.zeros(1), persistent=False)
    model.register_buffer("absent", None)
    assert list(save(model).leaves) == ["kept"]


class Wrapped(nn.Module):
    """A submodule that is called `module`, which is nobody's wrapper."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


def test_a_submodule_called_module_keeps_its_name() -> None:
    assert "module.0.weight" in save(Wrapped(two_layers())).leaves
    average = torch.optim.swa_utils.AveragedModel(two_layers())
    assert {"n_averaged", "module.0.weight"} <= save(average).leaves.keys()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")  # the default takes seconds to import


def test_wrappers_are_looked_through_at_any_depth() -> None:
    plain = save(nn.Sequential(two_layers(), nn.Linear(4, 2)))
    for model in (
        compiled(nn.Sequential(two_layers(), nn.Linear(4, 2))),
        nn.Sequential(compiled(two_layers()), compiled(nn.Linear(4, 2))),
        compiled(nn.Sequential(two_layers(), compiled(nn.Linear(4, 2)))),
        nn.DataParallel(nn.Sequential(two_layers(), nn.Linear(4, 2))),
        compiled(nn.DataParallel(nn.Sequential(nn.DataParallel(two_layers()), nn.Linear(4, 2)))),
    ):
        assert list(save(model).leaves) == list(plain.leaves)
        assert [name for name, _ in adapter.owners(model)] == [
            n for n in plain.leaves if n.endswith(("weight", "bias"))
        ]
        put(plain, model)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), rebuilt(plain), strict=True))


def rebuilt(tree: StateTree) -> list[Any]:
    return [adapter.TENSOR_KINDS[0].build(leaf) for leaf in tree.tensors.values()]


class Tied(nn.Module):
    def __init__(self, *, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def test_tied_weights_have_every_name_and_stay_tied() -> None:
    source, model = Tied(), Tied()
    saved = save(source)
    assert list(saved.leaves) == ["embedding.weight", "head.weight"]
    put(saved, model)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, source.head.weight)
    assert [name for name, _ in adapter.owners(model)] == ["embedding.weight"]


def test_different_weights_are_not_put_into_tied_ones() -> None:
    model = Tied()
    before = model.head.weight.clone()
    saved = save(Tied(tie=False))
    with pytest.raises(MismatchError, match=r"embedding.weight and head.weight are one tensor"):
        put(saved, model)
    with pytest.raises(MismatchError):
        adapter.examine(saved, model, Scope())
    assert torch.equal(model.head.weight, before)


def test_one_name_of_tied_weights_is_enough() -> None:
    saved, model = save(Tied()), Tied()
    leaves = {name: leaf for name, leaf in saved.leaves.items() if name != "head.weight"}
    put(StateTree(leaves, saved.skeleton), model)
    assert save(model).tensors["head.weight"].read().tobytes() == saved.tensors["embedding.weight"].read().tobytes()


class Overlapping(nn.Module):
    def __init__(self, start: int) -> None:
        super().__init__()
        base = torch.arange(6.0) + start
        self.register_buffer("low", base[:4])
        self.register_buffer("high", base[2:])


def test_overlapping_views_take_only_what_they_can_hold() -> None:
    model = Overlapping(0)
    put(save(Overlapping(10)), model)
    assert model.low.tolist() == [10, 11, 12, 13]
    assert model.high.tolist() == [12, 13, 14, 15]
    apart = nn.Module()
    apart.register_buffer("low", torch.zeros(4))
    apart.register_buffer("high", torch.ones(4))
    with pytest.raises(MismatchError, match="share memory"):
        put(save(apart), model)
    assert model.low.tolist() == [10, 11, 12, 13]


def test_neighbours_in_one_storage_do_not_overlap() -> None:
    model = nn.Module()
    base = torch.zeros(8)
    model.register_buffer("a", base[::2])
    model.register_buffer("b", base[1::2])
    other = nn.Module()
    other.register_buffer("a", torch.full((4,), 1.0))
    other.register_buffer("b", torch.full((4,), 2.0))
    put(save(other), model)
    assert base.tolist() == [1, 2] * 4


class Extra(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if state == "refuse":
            raise ValueError(state)
        self.state = state


@pytest.mark.parametrize("old", ["old", {"old": 1, "other": 2}])
@pytest.mark.parametrize("state", [3, None, "text", {"a": [1, {"b": 2.5}]}, [], {}, {"k": ()}, {1: "one"}])
def test_extra_states_come_back(state: Any, old: Any) -> None:
    model = nn.Sequential(Extra(old))
    put(save(nn.Sequential(Extra(state))), model)
    assert model[0].state == state


def test_tensors_in_extra_states_are_of_any_size() -> None:
    model = nn.Sequential(Extra(torch.zeros(3)))
    old = model[0].state
    put(save(nn.Sequential(Extra(torch.arange(5)))), model)
    assert model[0].state.tolist() == [0, 1, 2, 3, 4]
    assert old.tolist() == [0, 0, 0]


def test_an_extra_state_that_is_refused_changes_nothing() -> None:
    saved = save(nn.Sequential(Extra("a"), Extra("refuse")))
    model = nn.Sequential(Extra("1"), Extra("2"))
    with torch.no_grad():
        model[0].weight.fill_(5)
    with pytest.raises(UnsupportedError, match="refused its own state"):
        put(saved, model)
    assert [child.state for child in model] == ["1", "2"]
    assert model[0].weight.item() == 5


def test_an_extra_state_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"0._extra_state"):
        save(nn.Sequential(Extra(object())))


def test_an_extra_state_that_cannot_be_put_back_is_refused() -> None:
    class OneWay(nn.Module):
        def get_extra_state(self) -> Any:
            return 1

    with pytest.raises(UnsupportedError, match="no set_extra_state"):
        save(nn.Sequential(OneWay()))


def test_a_missing_extra_state_is_missing() -> None:
    with pytest.raises(MismatchError) as caught:
        put(StateTree({"0.weight": save(Extra(1)).leaves["weight"]}), nn.Sequential(Extra({"a": 1})))
    assert caught.value.missing == ("0._extra_state/a",)


def test_hooks_decide_the_names() -> None:
    def shorten(module: Any, state: Any, prefix: str, metadata: Any) -> None:
        for key in list(state):
            state[key.replace("layer_", "l")] = state.pop(key)

    def make() -> Any:
        model = nn.Module()
        model.layer_1 = nn.Linear(2, 2)
        model._register_state_dict_hook(shorten)
        return model

    source, model = make(), make()
    saved = save(source)
    assert list(saved.leaves) == ["l1.weight", "l1.bias"]
    assert [name for name, _ in adapter.owners(source)] == ["l1.weight", "l1.bias"]
    put(saved, model)
    assert torch.equal(model.layer_1.weight, source.layer_1.weight)


class Derived(nn.Module):
    """Saves a copy of what is no parameter, and takes it back in `load_state_dict`."""

    def __init__(self, count: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), count))
        self.count = torch.tensor(count)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: Any) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "count"] = self.count.clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.count = state_dict.pop(prefix + "count").clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_what_a_hook_makes_goes_back_through_load_state_dict() -> None:
    model = nn.Sequential(Derived(1.0))
    put(save(nn.Sequential(Derived(7.0))), model)
    assert model[0].count.item() == 7
    assert model[0].weight.tolist() == [7, 7]


def test_parametrizations_and_norms_come_back() -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        nn.utils.parametrizations.weight_norm(model[0])
        nn.utils.parametrizations.spectral_norm(model[1])
        return model.eval()

    source, model = make(0), make(1)
    put(save(source), model)
    data = torch.randn(2, 3)
    assert torch.equal(source(data), model(data))


def test_a_lazy_module_asks_for_one_batch() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UnsupportedError, match=r"0.weight") as caught:
        save(model)
    assert caught.value.hint == "run one batch through the model first"
    model(torch.zeros(1, 2))
    assert "0.weight" in save(model).leaves


def test_a_sharded_module_is_refused_by_name() -> None:
    class FullyShardedDataParallel(nn.Module): ...

    with pytest.raises(UnsupportedError, match=r"block is a FullyShardedDataParallel.*distributed work"):
        save(nn.ModuleDict({"block": FullyShardedDataParallel()}))


def test_another_shape_is_a_difference_and_not_a_reshape() -> None:
    with pytest.raises(MismatchError) as caught:
        put(save(nn.Linear(2, 3)), nn.Linear(3, 2))
    assert set(caught.value.differs) == {"weight", "bias"}


def test_the_state_of_another_kind_of_object_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    saved = save(optimizer, Scope({id(optimizer.param_groups[0]["params"][0]): "w"}))
    with pytest.raises(MismatchError, match="cannot take"):
        put(saved, nn.Linear(1, 1))


def test_a_frozen_and_a_half_precision_model_come_back() -> None:
    source = two_layers(0).to(torch.bfloat16).requires_grad_(False)
    model = two_layers(1).to(torch.bfloat16).requires_grad_(False)
    put(save(source), model)
    assert equal(source, model)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_large_weight_is_never_copied() -> None:
    leaves = adapter.to_tree(nn.Linear(100, 100), Scope()).leaves
    assert all(isinstance(leaf, Tensor) and leaf.memory is not None for leaf in leaves.values())
