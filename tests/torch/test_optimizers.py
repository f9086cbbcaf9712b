"""Optimizers: state by owner and slot; a resumed run is bit for bit the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch.saving import put, save, scope
from torch import nn, optim

import safepoint
from safepoint.adapters import Scope
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor

OPTIMIZERS = {
    "Adadelta": (optim.Adadelta, {}),
    "Adafactor": (optim.Adafactor, {}),
    "Adagrad": (optim.Adagrad, {"lr": 0.1}),
    "Adam amsgrad": (optim.Adam, {"amsgrad": True}),
    "Adam fused": (optim.Adam, {"fused": True}),
    "Adam for-loop": (optim.Adam, {"foreach": False}),
    "Adam tensor lr": (optim.Adam, {"lr": torch.tensor(0.01)}),
    "AdamW": (optim.AdamW, {"weight_decay": 0.1}),
    "Adamax": (optim.Adamax, {}),
    "ASGD": (optim.ASGD, {"t0": 1}),
    "LBFGS": (optim.LBFGS, {"max_iter": 3}),
    "NAdam": (optim.NAdam, {}),
    "RAdam": (optim.RAdam, {}),
    "RMSprop": (optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "Rprop": (optim.Rprop, {}),
    "SGD": (optim.SGD, {"lr": 0.1}),
    "SGD momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
}
DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Its parameters are declared in an order that may change between two runs."""

    def __init__(self, seed: int, *, swapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "last": nn.Linear(4, 1)}
        for name in reversed(layers) if swapped else layers:
            self.add_module(name, layers[name])

    def forward(self, data: Any) -> Any:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(data)))))


def train(model: Any, optimizer: Any, steps: int, data: Any = DATA) -> list[float]:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


def with_lr(arguments: Any) -> Any:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}


@pytest.mark.parametrize("kind, arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 5], ids=["fresh", "in use"])
def test_a_resumed_run_is_the_run_that_never_stopped(kind: Any, arguments: Any, steps_before: int) -> None:
    model = Network(0)
    optimizer = kind(model.parameters(), **with_lr(arguments))
    train(model, optimizer, 3)
    saved = save(model), save(optimizer, scope(model=model))
    losses = train(model, optimizer, 4)

    again = Network(1)
    other = kind(again.parameters(), **with_lr(arguments))
    train(again, other, steps_before)
    kept = [value for state in other.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    put(saved[0], again)
    put(saved[1], other, scope(model=again))
    if kind is not optim.LBFGS:
        now = [value for state in other.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        assert steps_before == 0 or [*map(id, now)] == [*map(id, kept)]
    assert train(again, other, 4) == losses
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "Adafactor"])
def test_names_win_over_the_order_of_parameters(name: str) -> None:
    kind, arguments = OPTIMIZERS[name]
    model, again = Network(0), Network(1, swapped=True)
    optimizer, other = kind(model.parameters(), **arguments), kind(again.parameters(), **arguments)
    train(model, optimizer, 3)
    put(save(model), again)
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    assert train(model, optimizer, 3) == train(again, other, 3)


def test_lbfgs_refuses_another_order_of_parameters() -> None:
    model, again = Network(0), Network(1, swapped=True)
    optimizer, other = optim.LBFGS(model.parameters()), optim.LBFGS(again.parameters())
    train(model, optimizer, 1)
    with pytest.raises(MismatchError, match="ordered differently"):
        put(save(optimizer, scope(model=model)), other, scope(model=again))


def test_leaves_are_named_by_owner_and_slot() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    names = save(optimizer, scope(model=model)).leaves.keys()
    assert {"model/weight/exp_avg", "model/bias/exp_avg_sq", "model/bias/step", "model/bias/group"} <= names
    assert {"groups/0/lr", "groups/0/betas/0", "algorithm"} <= names
    assert not any("fused" in name or "params" in name for name in names)


def test_steps_stay_on_the_host_and_keep_their_dtype() -> None:
    model = Network(0).to(torch.bfloat16)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1, DATA.to(torch.bfloat16))
    again = Network(1).to(torch.bfloat16)
    other = optim.Adam(again.parameters())
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    state = other.state[again.first.weight]
    assert (state["step"].dtype, state["step"].device.type) == (torch.float32, "cpu")
    assert state["exp_avg"].dtype == torch.bfloat16


def test_float32_state_of_half_precision_parameters_is_not_cast() -> None:
    def make(seed: int) -> Any:
        model = Network(seed).to(torch.bfloat16)
        optimizer = optim.Adam(model.parameters())
        return model, optimizer

    model, optimizer = make(0)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.rand(parameter.shape)}
    again, other = make(1)
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[one]["exp_avg"], other.state[two]["exp_avg"])
        assert other.state[two]["exp_avg"].dtype == torch.float32


def test_new_slots_have_the_layout_of_their_parameter() -> None:
    def make() -> Any:
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, optim.Adam(model.parameters())

    model, optimizer = make()
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    again, other = make()
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    slot = other.state[again.weight]["exp_avg"]
    assert slot.stride() == again.weight.stride()
    assert torch.equal(slot, optimizer.state[model.weight]["exp_avg"])


def test_a_slot_the_snapshot_lacks_is_missing() -> None:
    model = Network(0)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1)
    saved = save(optimizer, scope(model=model))
    live = optim.Adam(model.parameters(), amsgrad=True)
    train(model, live, 1)
    with pytest.raises(MismatchError) as caught:
        put(saved, live, scope(model=model))
    assert "model/first.weight/max_exp_avg_sq" in caught.value.missing


def test_a_snapshot_from_before_the_first_step_empties_the_state() -> None:
    model = Network(0)
    optimizer = optim.Adam(model.parameters())
    saved = save(optimizer, scope(model=model))
    train(model, optimizer, 2)
    put(saved, optimizer, scope(model=model))
    assert not optimizer.state


def test_a_parameter_without_state_has_none_after_the_restore() -> None:
    model = Network(0)
    model.second.requires_grad_(False)
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    saved = save(optimizer, scope(model=model))
    again = Network(0)
    other = optim.AdamW(again.parameters())
    train(again, other, 1)
    put(saved, other, scope(model=again))
    assert again.second.weight not in other.state
    assert again.first.weight in other.state


def test_the_optimizer_of_an_untracked_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match="belongs to no tracked object") as caught:
        save(optim.SGD(model.parameters()))
    assert caught.value.hint is not None
    assert "Checkpoint(model=model, optimizer=optimizer)" in caught.value.hint


def test_named_parameters_are_names_enough() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.Adam(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = save(optimizer)
    assert "weight/exp_avg" in saved.leaves
    other = optim.Adam(nn.Linear(2, 1).named_parameters())
    put(saved, other)
    assert save(other).leaves.keys() == saved.leaves.keys()


def test_an_optimizer_over_several_models_finds_each_owner() -> None:
    def make(seed: int) -> Any:
        models = {"encoder": Network(seed), "head": Network(seed + 1)}
        return models, optim.Adam([p for model in models.values() for p in model.parameters()])

    models, optimizer = make(0)
    train(nn.Sequential(models["encoder"], nn.Linear(1, 3), models["head"]), optimizer, 2)
    again, other = make(5)
    put(save(optimizer, scope(**models)), other, scope(**again))
    for name, model in models.items():
        for one, two in zip(model.parameters(), again[name].parameters(), strict=True):
            assert torch.equal(optimizer.state[one]["exp_avg"], other.state[two]["exp_avg"])


def test_groups_added_later_keep_their_own_hyperparameters() -> None:
    def make(seed: int) -> Any:
        model = Network(seed)
        optimizer = optim.SGD(model.first.parameters(), lr=0.1, momentum=0.9)
        optimizer.add_param_group({"params": model.last.parameters(), "lr": 0.01, "name": "head"})
        return model, optimizer

    model, optimizer = make(0)
    optimizer.param_groups[1]["lr"] = 0.005
    train(model, optimizer, 2)
    again, other = make(1)
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.005]
    assert other.param_groups[1]["name"] == "head"


def test_groups_in_another_order_are_refused() -> None:
    model = Network(0)
    groups = [{"params": model.first.parameters(), "lr": 0.1}, {"params": model.last.parameters(), "lr": 0.2}]
    saved = save(optim.SGD([dict(group) for group in groups]), scope(model=model))
    model = Network(0)
    groups = [{"params": model.last.parameters(), "lr": 0.2}, {"params": model.first.parameters(), "lr": 0.1}]
    other = optim.SGD(groups)
    with pytest.raises(MismatchError, match="grouped or ordered differently") as caught:
        put(saved, other, scope(model=model))
    assert caught.value.differs["model/first.weight/group"] == (1, 0)


def test_a_group_the_snapshot_lacks_is_missing() -> None:
    model = Network(0)
    saved = save(optim.SGD(model.first.parameters()), scope(model=model))
    other = optim.SGD([{"params": model.first.parameters()}, {"params": model.last.parameters()}])
    with pytest.raises(MismatchError) as caught:
        put(saved, other, scope(model=model))
    assert "groups/1/lr" in caught.value.missing
    assert "model/last.weight/group" in caught.value.missing


def checkpoint_of(*groups: Any) -> tuple[Any, Any, Any]:
    """A network, AdamW over some of its layers, one group each, and a checkpoint of both."""
    model = Network(0)
    optimizer = optim.AdamW([{"params": getattr(model, group).parameters()} for group in groups])
    train(model, optimizer, 1)
    return model, optimizer, safepoint.Checkpoint(model=model, optimizer=optimizer)


def test_another_number_of_groups_is_told_in_a_sentence(tmp_path: Path) -> None:
    checkpoint_of("first", "last")[2].save(tmp_path / "two")
    checkpoint_of("first")[2].save(tmp_path / "one")
    with pytest.raises(MismatchError, match="nothing was changed") as caught:
        checkpoint_of("first")[2].restore(tmp_path / "two")
    assert "2 parameter groups were saved and the live optimizer has 1: call add_param_group()" in str(caught.value)
    assert "model/last.weight, model/last.bias" in str(caught.value.hint)
    with pytest.raises(MismatchError) as caught:
        checkpoint_of("first", "last")[2].restore(tmp_path / "one")
    assert "1 parameter groups were saved and the live optimizer has 2" in str(caught.value)
    assert "after the restore" in str(caught.value.hint)
    model = Network(0)
    merged = safepoint.Checkpoint(model=model, optimizer=optim.AdamW(model.parameters()))
    with pytest.raises(MismatchError, match="grouped or ordered differently"):
        merged.restore(tmp_path / "two")


def test_a_group_is_added_before_or_after_the_restore(tmp_path: Path) -> None:
    model, optimizer, checkpoint = checkpoint_of("first", "last")
    checkpoint.save(tmp_path / "two")
    expected = train(model, optimizer, 2)
    again, other, restored = checkpoint_of("first")
    other.add_param_group({"params": again.last.parameters()})
    restored.restore(tmp_path / "two")
    assert train(again, other, 2) == expected

    model, optimizer, checkpoint = checkpoint_of("first")
    checkpoint.save(tmp_path / "one")
    again, other, restored = checkpoint_of("first")
    restored.restore(tmp_path / "one")
    for one in (optimizer, other):
        one.add_param_group({"params": (model if one is optimizer else again).last.parameters(), "lr": 0.5})
    assert train(again, other, 2) == train(model, optimizer, 2)


def test_parameters_that_the_optimizer_lost_are_named(tmp_path: Path) -> None:
    model = Network(0)
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path)
    again = Network(1)
    frozen = optim.AdamW([p for name, p in again.named_parameters() if not name.startswith("first")])
    with pytest.raises(MismatchError, match=r"unexpected\s+optimizer/model/first.weight/exp_avg") as caught:
        safepoint.Checkpoint(model=again, optimizer=frozen).restore(tmp_path)
    assert "the live optimizer lacks model/first.weight, model/first.bias" in str(caught.value.hint)
    safepoint.Checkpoint(model=again, optimizer=frozen).restore(tmp_path, strict=False)
    assert torch.equal(frozen.state[again.last.weight]["exp_avg"], optimizer.state[model.last.weight]["exp_avg"])


def test_a_tensor_learning_rate_and_a_number_are_told_apart(tmp_path: Path) -> None:
    """Which of them it is decides how torch computes a step: the caller says it, not the snapshot."""
    model = Network(0)
    safepoint.Checkpoint(model=model, optimizer=optim.Adam(model.parameters(), lr=0.1)).save(tmp_path)
    tensor = optim.Adam(model.parameters(), lr=torch.tensor(0.3))
    with pytest.raises(MismatchError, match=r"optimizer/groups/0/lr   live float32\[\], saved 0.1"):
        safepoint.Checkpoint(model=model, optimizer=tensor).restore(tmp_path)
    assert tensor.param_groups[0]["lr"].item() == pytest.approx(0.3)


def test_muon_beside_adamw_goes_on_exactly(tmp_path: Path) -> None:
    """Two optimizers over one module, each with its part of the parameters, as Muon is used."""

    def make(seed: int) -> Any:
        model = Network(seed)
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        optimizers = {"muon": optim.Muon(matrices, lr=0.1), "adamw": optim.AdamW(others)}
        return model, optimizers, safepoint.Checkpoint(model=model, optimizers=optimizers)

    def run(model: Any, optimizers: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            loss = model(DATA).square().mean()
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
            losses.append(loss.item())
        return losses

    model, optimizers, checkpoint = make(0)
    run(model, optimizers, 3)
    checkpoint.save(tmp_path)
    expected = run(model, optimizers, 3)
    again, others, restored = make(1)
    report = restored.restore(tmp_path)
    assert "optimizers/muon/model/first.weight/momentum_buffer" in report.matched
    assert "optimizers/adamw/model/first.bias/exp_avg" in report.matched
    assert run(again, others, 3) == expected


def test_two_optimizers_over_the_same_parameters_keep_their_own_state(tmp_path: Path) -> None:
    model = Network(0)
    fast, slow = optim.Adam(model.parameters()), optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (fast, slow, fast):
        train(model, optimizer, 1)
    safepoint.Checkpoint(model=model, fast=fast, slow=slow).save(tmp_path)
    again = Network(1)
    others = {"fast": optim.Adam(again.parameters()), "slow": optim.SGD(again.parameters(), lr=0.5, momentum=0.1)}
    safepoint.Checkpoint(model=again, **others).restore(tmp_path)
    for mine, theirs in ((fast, others["fast"]), (slow, others["slow"]), (fast, others["fast"])):
        assert train(model, mine, 1) == train(again, theirs, 1)


def test_a_buffer_that_is_optimized_has_an_owner(tmp_path: Path) -> None:
    def make(start: float) -> Any:
        model = nn.Module()
        model.register_buffer("prompt", torch.full((3,), start, requires_grad=True))
        optimizer = optim.Adam([model.prompt])
        (model.prompt * start).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = make(1.0)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path)
    again, other = make(5.0)
    safepoint.Checkpoint(model=again, optimizer=other).restore(tmp_path)
    assert torch.equal(again.prompt, model.prompt)
    assert again.prompt.requires_grad
    assert torch.equal(other.state[again.prompt]["exp_avg"], optimizer.state[model.prompt]["exp_avg"])


@pytest.mark.parametrize("live", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True}])
def test_flags_of_the_computation_do_not_touch_the_state(live: Any, tmp_path: Path) -> None:
    def make(seed: int, **flags: Any) -> Any:
        model = Network(seed)
        return model, optim.AdamW(model.parameters(), lr=0.01, amsgrad=True, **flags)

    model, optimizer = make(0, fused=True)
    train(model, optimizer, 2)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path)
    again, other = make(1, **live)
    safepoint.Checkpoint(model=again, optimizer=other).restore(tmp_path)
    flags = {key: value for key, value in other.param_groups[0].items() if key in {"foreach", "fused", "capturable"}}
    assert {key: flags[key] for key in live} == live
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        mine, theirs = optimizer.state[one], other.state[two]
        assert mine.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert all(torch.equal(mine[slot], theirs[slot]) for slot in mine)


def test_a_hyperparameter_that_the_snapshot_does_not_know_stays() -> None:
    model = Network(0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    saved = save(optimizer, scope(model=model))
    optimizer.param_groups[0]["invented_later"] = 5
    optimizer.param_groups[0]["lr"] = 9.0
    put(saved, optimizer, scope(model=model))
    assert optimizer.param_groups[0]["invented_later"] == 5
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_how_a_step_is_computed_is_the_live_optimizers_choice() -> None:
    model = Network(0)
    saved = save(optim.Adam(model.parameters(), foreach=True), scope(model=model))
    other = optim.Adam(model.parameters(), fused=True)
    put(saved, other, scope(model=model))
    assert other.param_groups[0]["fused"]
    assert not other.param_groups[0]["foreach"]


def test_the_state_of_another_algorithm_is_refused() -> None:
    model = Network(0)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1)
    with pytest.raises(MismatchError, match="another optimizer") as caught:
        put(save(optimizer, scope(model=model)), optim.SGD(model.parameters()), scope(model=model))
    assert (caught.value.expected, caught.value.found) == ("SGD", "Adam")


def test_slots_of_a_reshaped_parameter_are_not_created() -> None:
    model = nn.Linear(3, 4)
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    wider = nn.Linear(3, 5)
    with pytest.raises(MismatchError) as caught:
        put(save(optimizer, scope(model=model)), optim.Adam(wider.parameters()), scope(model=wider))
    assert "model/weight/exp_avg" in caught.value.differs


def test_a_tensor_learning_rate_is_written_in_place() -> None:
    model = Network(0)
    rate = torch.tensor(0.5)
    other = optim.Adam(model.parameters(), lr=rate)
    put(save(optim.Adam(model.parameters(), lr=torch.tensor(0.25)), scope(model=model)), other, scope(model=model))
    assert other.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25


def test_sparse_adam_comes_back() -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.Embedding(5, 2, sparse=True)
        return model, optim.SparseAdam(model.parameters())

    def run(model: Any, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(torch.tensor([0, 2])).square().sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    model, optimizer = make(0)
    run(model, optimizer)
    again, other = make(1)
    put(save(model), again)
    put(save(optimizer, scope(model=model)), other, scope(model=again))
    assert [run(model, optimizer) for _ in range(3)] == [run(again, other) for _ in range(3)]


class Counting(optim.SGD):
    """State of every kind an optimizer of one's own may keep."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["calls"] = state.get("calls", 0) + 1
                state["nothing"] = None
                state["history"] = [*state.get("history", []), torch.full((2,), float(state["calls"]))]
                state["table"] = {"inner": (1, 2.5), "empty": []}
        self.state["total"] = self.state.get("total", 0) + 1
        return super().step(closure)


def test_values_lists_and_words_come_back() -> None:
    def make(steps: int) -> Any:
        model = nn.Linear(2, 1)
        optimizer = Counting(model.parameters())
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = make(2)
    saved = save(optimizer, scope(model=model))
    for steps in (0, 1, 5):
        again, other = make(steps)
        put(saved, other, scope(model=again))
        state = other.state[again.weight]
        assert (state["calls"], state["nothing"]) == (2, None)
        assert [item.tolist() for item in state["history"]] == [[1, 1], [2, 2]]
        assert state["table"] == {"inner": (1, 2.5), "empty": []}
        assert other.state["total"] == 2


def test_an_optimizer_that_keeps_more_is_refused() -> None:
    class More(optim.SGD):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "slow_weights": []}

    model = Network(0)
    with pytest.raises(UnsupportedError, match="slow_weights"):
        save(More(model.parameters()), scope(model=model))


def test_a_part_of_the_state_leaves_the_rest_alone() -> None:
    model = Network(0)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 2)
    saved = save(optimizer, scope(model=model))
    train(model, optimizer, 2)
    average = optimizer.state[model.first.weight]["exp_avg"].clone()
    from safepoint.adapters import torch as adapter

    part = StateTree({"groups/0/lr": 7.0, "model/last.bias/step": saved.leaves["model/last.bias/step"]}, saved.skeleton)
    adapter.from_tree(part, optimizer, scope(model=model))
    assert optimizer.param_groups[0]["lr"] == 7.0
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimizer.state[model.last.bias]["step"].item() == 2
    assert optimizer.state[model.last.weight]["step"].item() == 4
    assert torch.equal(optimizer.state[model.first.weight]["exp_avg"], average)


def test_leaves_without_a_skeleton_are_taken() -> None:
    model, again = Network(0), Network(1)
    optimizer, other = optim.Adam(model.parameters()), optim.Adam(again.parameters())
    train(model, optimizer, 2)
    put(StateTree(save(optimizer, scope(model=model)).leaves), other, scope(model=again))
    assert torch.equal(optimizer.state[model.last.weight]["exp_avg"], other.state[again.last.weight]["exp_avg"])


def test_a_model_called_like_our_words_does_no_harm() -> None:
    for word in ("groups", "state", "algorithm"):
        models = {word: Network(0)}
        optimizer = optim.Adam(models[word].parameters())
        train(models[word], optimizer, 2)
        again = {word: Network(1)}
        other = optim.Adam(again[word].parameters())
        saved = save(optimizer, scope(**models))
        put(saved, other, scope(**again))
        assert save(other, scope(**again)).leaves.keys() == saved.leaves.keys()


def test_an_optimizer_over_a_dictionary_of_tensors_finds_its_owners() -> None:
    weights = {"w": torch.zeros(2, requires_grad=True)}
    optimizer = optim.Adam(weights.values())
    weights["w"].sum().backward()
    optimizer.step()
    saved = save(optimizer, Scope({id(weights["w"]): "weights/w"}))
    assert isinstance(saved.leaves["weights/w/exp_avg"], Tensor)
