"""Modules without memory yet (meta device, lazy layers): a restore gives it to them, in the same tensor objects."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import safepoint


class Network(nn.Module):
    """Tied embeddings, a channels-last convolution, a persistent buffer, and one that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)
        self.conv.weight._no_weight_decay = True  # type: ignore[attr-defined]
        self.conv.bias.requires_grad_(False)

    def forward(self, indices: Any) -> Any:
        hidden = self.embedding(indices)
        return self.head(hidden * self.scale) + self.norm(self.conv(hidden.T[None, :, :, None])).sum()


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Network().to(torch.float32)


def on_meta() -> Any:
    with torch.device("meta"):
        return Network()


INDICES = torch.tensor([1, 5, 2])


@pytest.fixture(params=[{}, {"in_place": True}], ids=["all or nothing", "in place"])
def how(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_module_on_the_meta_device_is_materialised(tmp_path: Path, how: Any, caplog: Any) -> None:
    source = network()
    safepoint.Checkpoint(model=source).save(tmp_path)
    model = on_meta()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    model.scale = torch.full((3,), 2.0)
    with caplog.at_level(logging.WARNING):
        safepoint.Checkpoint(model=model).restore(tmp_path, **how)
    assert not caplog.records
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert {str(tensor.device) for tensor in model.state_dict().values()} == {"cpu"}
    assert model.head.weight is model.embedding.weight
    assert isinstance(model.conv.weight, nn.Parameter)
    assert model.conv.weight.stride() == source.conv.weight.stride()
    assert model.conv.weight._no_weight_decay
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in source.parameters()]
    assert torch.equal(model(INDICES), source(INDICES))


def test_what_stays_without_memory_is_named_in_a_warning(tmp_path: Path, caplog: Any) -> None:
    safepoint.Checkpoint(model=network()).save(tmp_path)
    with caplog.at_level(logging.WARNING, logger="safepoint"):
        safepoint.Checkpoint(model=on_meta()).restore(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "still without memory, because nothing was restored into them: scale; give them content before use"
    ]
    caplog.clear()
    safepoint.Checkpoint(model=on_meta()).restore(tmp_path, select=["model/norm.*"])
    assert "conv.weight" in caplog.text


def test_a_materialised_model_trains_on_as_the_one_that_was_saved(tmp_path: Path, how: Any) -> None:
    """The optimizer may be made before the restore, and tracked before the model: it holds the same parameters."""

    def run(model: Any, optimizer: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(INDICES).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    source = network()
    optimizer = torch.optim.AdamW(source.parameters())
    run(source, optimizer, 2)
    safepoint.Checkpoint(optimizer=optimizer, model=source).save(tmp_path)
    expected = run(source, optimizer, 3)
    for early in (True, False):
        model = on_meta()
        model.scale = torch.full((3,), 2.0)
        if not early:
            safepoint.Checkpoint(model=model).restore(tmp_path)
        again = torch.optim.AdamW(model.parameters())
        safepoint.Checkpoint(optimizer=again, model=model).restore(tmp_path, **how)
        assert run(model, again, 3) == expected


def test_a_module_of_which_a_part_is_on_the_meta_device_keeps_the_other_part(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    safepoint.Checkpoint(model=source).save(tmp_path)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, device="meta"))
    memory = model[0].weight.data_ptr()
    safepoint.Checkpoint(model=model).restore(tmp_path)
    assert model[0].weight.data_ptr() == memory
    assert torch.equal(model(torch.ones(1, 2)), source(torch.ones(1, 2)))


def test_memory_comes_on_the_default_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safepoint.Checkpoint(model=nn.Linear(2, 2)).save(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(torch, "get_default_device", lambda: asked.append("here") or torch.device("cpu"))
    model = nn.Linear(2, 2, device="meta")
    safepoint.Checkpoint(model=model).restore(tmp_path)
    assert asked
    monkeypatch.undo()
    with torch.device("meta"):  # there is nowhere to go: the host
        model = nn.Linear(2, 2)
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert model.weight.device.type == "cpu"


def test_differences_are_found_before_anything_is_materialised(tmp_path: Path) -> None:
    safepoint.Checkpoint(model=nn.Linear(2, 3)).save(tmp_path)
    for model in (nn.Linear(2, 4, device="meta"), nn.Linear(2, 3, device="meta", dtype=torch.float64)):
        with pytest.raises(safepoint.MismatchError, match="nothing was changed"):
            safepoint.Checkpoint(model=model).restore(tmp_path)
        assert model.weight.is_meta
    half = nn.Linear(2, 3, device="meta", dtype=torch.bfloat16)
    safepoint.Checkpoint(model=half).restore(tmp_path, cast=True)
    assert half.weight.dtype == torch.bfloat16
    with pytest.raises(safepoint.MismatchError, match=r"missing\s+other"):
        safepoint.Checkpoint(other=nn.Linear(2, 3, device="meta")).restore(tmp_path)


def test_a_file_that_keeps_tied_weights_once_is_enough(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = network()
    save_file({n: t.contiguous() for n, t in source.state_dict().items() if n != "head.weight"}, tmp_path / "m")
    model = on_meta()
    model.scale = torch.full((3,), 2.0)
    safepoint.Checkpoint(model=model).restore(tmp_path / "m")
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model(INDICES), source(INDICES))


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state


def test_extra_state_and_no_memory_are_not_restored_together(tmp_path: Path) -> None:
    safepoint.Checkpoint(model=Extra(2, 2)).save(tmp_path)
    model = Extra(2, 2, device="meta")
    with pytest.raises(safepoint.UnsupportedError, match="weight has no memory yet") as caught:
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert "to_empty" in str(caught.value.hint)
    model.to_empty(device="cpu")
    safepoint.Checkpoint(model=model).restore(tmp_path)


def test_a_module_on_the_meta_device_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(safepoint.UnsupportedError, match=r"model: weight cannot be saved: it is on the meta device"):
        safepoint.Checkpoint(model=nn.Linear(2, 2, device="meta")).save(tmp_path)


def lazy() -> Any:
    return nn.Sequential(nn.LazyConv1d(4, 2), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(3))


def test_a_lazy_module_gets_its_shapes_from_the_snapshot(tmp_path: Path) -> None:
    source = lazy()
    data = torch.randn(5, 2, 6)
    source(data)
    safepoint.Checkpoint(model=source.eval()).save(tmp_path)
    model = lazy().eval()
    safepoint.Checkpoint(model=model).restore(tmp_path)
    assert torch.equal(model(data), source(data))
    assert [type(layer) for layer in model] == [nn.Conv1d, nn.BatchNorm1d, nn.Flatten, nn.Linear]
    assert model[3].in_features == source[3].in_features


def test_a_lazy_module_takes_what_fits_and_waits_for_the_rest(tmp_path: Path, caplog: Any) -> None:
    source = nn.Sequential(nn.Linear(2, 3))
    safepoint.Checkpoint(model=source).save(tmp_path)
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(4))
    with pytest.raises(safepoint.MismatchError, match=r"missing\s+model/1.weight"):
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert nn.parameter.is_lazy(model[0].weight)
    report = safepoint.Checkpoint(model=model).restore(tmp_path, strict=False)
    assert report.missing == ("model/1.weight", "model/1.bias")
    assert "1.weight" in caplog.text
    assert model(torch.ones(1, 2)).shape == (1, 4)


def test_a_run_is_resumed_into_a_module_on_the_meta_device(tmp_path: Path) -> None:
    def run(model: Any, path: str, stop: int = 6) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)
        manager = safepoint.CheckpointManager(checkpoint, tmp_path / path)
        for step in manager.steps(6):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            scheduler.step()
            manager.save()
            if step + 1 == stop:
                break
        manager.wait()
        return model.state_dict()

    def make() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))

    whole = run(make(), "whole")
    run(make(), "killed", 3)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    resumed = run(model, "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Stubborn:
    def state_dict(self) -> dict[str, int]:
        return {"count": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise ValueError("not today")


def test_an_object_that_refuses_its_state_leaves_nothing_materialised(tmp_path: Path) -> None:
    safepoint.Checkpoint(model=nn.Linear(2, 2), other=Stubborn()).save(tmp_path)
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(Exception, match="not today"):
        safepoint.Checkpoint(model=model, other=Stubborn()).restore(tmp_path)
    assert model.weight.is_meta


def test_damage_leaves_nothing_materialised(tmp_path: Path) -> None:
    safepoint.Checkpoint(model=nn.Linear(2, 2)).save(tmp_path)
    (pack,) = (tmp_path / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(safepoint.CorruptionError):
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert model.weight.is_meta


def test_recurrent_compiled_and_parametrized_modules_are_materialised(tmp_path: Path) -> None:
    """Recurrent layers hold weak references to their weights."""

    def make() -> Any:
        return {
            "recurrent": nn.LSTM(2, 3, 2),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "compiled": torch.compile(nn.Linear(2, 2), backend="eager"),
        }

    source = make()
    safepoint.Checkpoint(**source).save(tmp_path)
    with torch.device("meta"):
        models = make()
    safepoint.Checkpoint(**models).restore(tmp_path)
    data = torch.ones(3, 1, 2)
    for name, model in models.items():
        found, expected = model(data), source[name](data)
        assert torch.equal(*((one[0] if isinstance(one, tuple) else one) for one in (found, expected)))
