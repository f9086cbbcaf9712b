"""Transfer: a part of another run, or of a stranger's file, put into a new model; told in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import safepoint


class Classifier(nn.Module):
    def __init__(self, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, num_classes)

    def forward(self, data: Any) -> Any:
        return self.head(self.encoder(data))


@pytest.fixture
def pretrained(tmp_path: Path) -> Any:
    """A run of ten classes with optimizer and random state, as training leaves it; returns its model."""
    model = Classifier(10)
    optimizer = torch.optim.AdamW(model.parameters())
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(model=model, optimizer=optimizer), tmp_path / "pretrained"
    )
    for _ in manager.steps(3):
        loss = model(torch.randn(4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        manager.save(metrics={"loss": loss})
    manager.close()
    return model


def same(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("select", ["model/encoder.*", ["model/encoder.*", "model/head.nothing"][:1]])
def test_a_backbone_is_taken_from_another_run(pretrained: Any, tmp_path: Path, select: Any) -> None:
    model = Classifier(5, seed=1)
    head = model.head.weight.clone()
    report = safepoint.Checkpoint(model=model).restore(tmp_path / "pretrained", at=2, select=select)
    assert same(model.encoder, pretrained.encoder)
    assert torch.equal(model.head.weight, head)
    assert all(name.startswith("model/encoder.") for name in report.matched)
    first, *_ = str(report).splitlines()
    assert first == f"restored all {len(report.matched)} names from {tmp_path / 'pretrained'}, step 2"


def test_what_fits_is_taken_and_the_rest_is_told(pretrained: Any, tmp_path: Path) -> None:
    model = Classifier(5, seed=1)
    model.extra = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = safepoint.Checkpoint(model=model).restore(tmp_path / "pretrained", strict=False)
    assert same(model.encoder, pretrained.encoder)
    assert set(report.reshaped) == {"model/head.weight", "model/head.bias"}
    for name in ("head.weight", "head.bias", "extra.weight", "extra.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert str(report) == (
        f"restored 9 of 13 names from {tmp_path / 'pretrained'}, step 2\n"
        "  left as they were: another shape: model/head.weight (here float32[5, 8], saved float32[10, 8]), "
        "model/head.bias (here float32[5], saved float32[10])\n"
        "  left as they were: not in the snapshot: model/extra.weight, model/extra.bias\n"
        "  in the snapshot only, not used: optimizer (all of it), random (all of it)"
    )


def test_patterns_map_names(pretrained: Any, tmp_path: Path) -> None:
    model = nn.ModuleDict({"backbone": nn.ModuleDict({f"layer{i}": pretrained.encoder[i] for i in (0, 1, 3)})})
    safepoint.Checkpoint(net=model).save(tmp_path / "other")
    again = Classifier(5, seed=1)
    rules = {"^net/": "model/", "backbone\\.layer(\\d+)": r"encoder.\1"}
    report = safepoint.Checkpoint(model=again).restore(tmp_path / "other", rename=rules, select=["model/encoder.*"])
    assert len(report.matched) == 9
    assert same(again.encoder, pretrained.encoder)
    with pytest.raises(safepoint.MismatchError, match="rename='\\^nett/' is found in no name") as caught:
        safepoint.Checkpoint(model=again).restore(tmp_path / "other", rename={"^nett/": "model/"})
    assert "net/backbone.layer" in str(caught.value.hint)


def test_a_strangers_safetensors_file_goes_onto_one_model(pretrained: Any, tmp_path: Path) -> None:
    save_file(pretrained.state_dict(), tmp_path / "plain.safetensors")
    model = Classifier(10, seed=1)
    report = safepoint.Checkpoint(model=model).restore(tmp_path / "plain.safetensors")
    assert same(model, pretrained)
    assert str(report) == f"restored all 11 names from {tmp_path / 'plain.safetensors'}"

    prefixed = {f"bert.{name}": tensor for name, tensor in pretrained.encoder.state_dict().items()}
    save_file(prefixed, tmp_path / "encoder")
    model = Classifier(5, seed=1)
    checkpoint = safepoint.Checkpoint(model=model)
    with pytest.raises(safepoint.MismatchError, match="nothing was changed"):
        checkpoint.restore(tmp_path / "encoder")
    progress: list[tuple[int, int]] = []
    checkpoint.restore(
        tmp_path / "encoder",
        rename={r"^model/bert\.": "model/encoder."},
        select=["model/encoder.*"],
        progress=lambda *call: progress.append(call),
    )
    assert same(model.encoder, pretrained.encoder)
    assert progress[-1][0] == progress[-1][1] > 0
    both = safepoint.Checkpoint(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(safepoint.UnsupportedError, match="is one object's, and 2 are tracked"):
        both.restore(tmp_path / "encoder")


def test_a_strangers_file_is_cast_and_checked(pretrained: Any, tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in pretrained.state_dict().items()}
    save_file(half, tmp_path / "half")
    model = Classifier(10, seed=1)
    with pytest.raises(safepoint.MismatchError, match="cast=True"):
        safepoint.Checkpoint(model=model).restore(tmp_path / "half")
    report = safepoint.Checkpoint(model=model).restore(tmp_path / "half", cast=True)
    assert torch.equal(model.head.weight, half["head.weight"].float())
    assert "converted: model/encoder.0.weight (here float32[8, 4], saved float16[8, 4])" in str(report)
    before = model.head.weight.clone()
    data = (tmp_path / "half").read_bytes()
    (tmp_path / "half").write_bytes(data[:-1])
    with pytest.raises(safepoint.CorruptionError, match="size is wrong"):
        safepoint.Checkpoint(model=model).restore(tmp_path / "half", cast=True)
    assert torch.equal(model.head.weight, before)


def test_a_new_optimizer_starts_afresh_over_a_restored_backbone(pretrained: Any, tmp_path: Path) -> None:
    model = Classifier(5, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    with pytest.raises(safepoint.MismatchError, match="the state of another optimizer was saved"):
        checkpoint.restore(tmp_path / "pretrained")
    report = checkpoint.restore(tmp_path / "pretrained", strict=False)
    assert "optimizer/model/encoder.0.weight/exp_avg" in report.ignored
    assert "optimizer" in report.missing
    assert not optimizer.state
    assert same(model.encoder, pretrained.encoder)
    checkpoint.restore(tmp_path / "pretrained", select=["model/encoder.*"])
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    assert not same(model.encoder, pretrained.encoder)


def test_a_head_keeps_its_moments_to_itself(pretrained: Any, tmp_path: Path) -> None:
    """With the optimizer: the backbone's moments come, the new head has none, and both train on."""
    model = Classifier(5, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    report = safepoint.Checkpoint(model=model, optimizer=optimizer).restore(tmp_path / "pretrained", strict=False)
    assert "optimizer/model/head.weight/exp_avg" in report.reshaped
    assert optimizer.state[model.encoder[0].weight]["step"].item() == 3
    assert not optimizer.state.get(model.head.weight)
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    assert optimizer.state[model.head.weight]["step"].item() == 1
