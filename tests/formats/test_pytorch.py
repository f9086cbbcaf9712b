"""Files of PyTorch's current release, each value compared with what PyTorch reads."""

from __future__ import annotations

import collections
import pathlib
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.formats.comparing import assert_same

import safepoint

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.LSTM(8, 4)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


@BOTH
def test_a_state_dict(zipped, tmp_path: Path) -> None:
    model, _ = network()
    torch.save(model.state_dict(), tmp_path / "m", _use_new_zipfile_serialization=zipped)
    loaded = torch.load(tmp_path / "m", weights_only=True)
    with safepoint.open(tmp_path / "m") as tensors:
        assert (tensors.kind, tensors.framework) == ("pytorch", "PyTorch")
        assert_same(tensors, {name: tensor.numpy() for name, tensor in loaded.items()})


@BOTH
def test_a_training_checkpoint_restores_by_its_names(zipped, tmp_path: Path) -> None:
    model, optimizer = network()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 7,
        "args": Namespace(lr=0.1, out=pathlib.PurePosixPath("a/b"), none=None),
        "best": np.float64(0.25),
        "history": np.arange(6.0).reshape(2, 3).T,
        "seen": {1, 2},
        "counts": collections.defaultdict(list, a=[1]),
        "complex": 1 + 2j,
        "raw": b"\x00\xff",
        "big": 1 << 100,
        (1, "x"): torch.bfloat16,
    }
    torch.save(state, tmp_path / "c", _use_new_zipfile_serialization=zipped)
    with safepoint.open(tmp_path / "c") as tensors:
        assert np.array_equal(tensors["model/0.weight"], model[0].weight.detach().numpy())
        exp_avg = optimizer.state_dict()["state"][0]["exp_avg"]
        assert np.array_equal(tensors["optimizer/state/0/exp_avg"], exp_avg.numpy())
        assert np.array_equal(tensors["history"], state["history"])
        plain = tensors.plain
        assert plain["optimizer/param_groups/0/lr"] == 3e-4
        assert (plain["epoch"], plain["best"], plain["args/lr"], plain["args/out"]) == (7, 0.25, 0.1, "a/b")
        assert (plain["complex"], plain["raw"], plain["big"]) == (1 + 2j, b"\x00\xff", 1 << 100)
        assert plain["(1, 'x')"] == "torch.bfloat16"
        assert plain["scheduler/milestones/2"] == 2
        assert plain["counts/a/0"] == 1
    other, _ = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    safepoint.Checkpoint(model=other).restore(tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
    torch.uint32, torch.uint64,
]  # fmt: skip


def test_every_dtype_every_view_and_what_shares_a_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    state: dict[str, Any] = {str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES}
    state |= {
        "base": base, "transposed": base.transpose(0, 2), "stepped": base[:, ::2, 1:], "row": base[1, 2],
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "expanded": torch.ones(1).expand(7, 3),
        "parameter": torch.nn.Parameter(base[0]), "buffer": torch.nn.Buffer(base[1]),
    }  # fmt: skip
    torch.save(state, tmp_path / "s")
    loaded = torch.load(tmp_path / "s", weights_only=True)
    with safepoint.open(tmp_path / "s") as tensors:
        assert sorted(tensors) == sorted(state)
        for name, tensor in loaded.items():
            found = tensors[name]
            dense = tensor.detach().contiguous()
            assert found.shape == tuple(tensor.shape)
            assert found.spec.dtype == str(tensor.dtype).removeprefix("torch.")
            expected = dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
            assert found.numpy().tobytes() == expected, name
        assert tensors["transposed"][1, 2].tolist() == loaded["transposed"][1, 2].tolist()


def test_a_slice_reads_its_own_bytes_and_a_tensor_its_checksum(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(1000.0), "v": torch.ones(10)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.index(torch.arange(500.0, 520.0).numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with safepoint.open(tmp_path / "x.pt") as tensors:
        assert tensors["w"][:3].tolist() == [0, 1, 2]
        with pytest.raises(safepoint.CorruptionError, match="is damaged"):
            tensors["w"].numpy()
        assert tensors["v"].numpy().sum() == 10


def test_zip64(tmp_path: Path) -> None:
    """Sizes of 64 bits, as for members over 4 GB; the fields do not need such a member."""
    torch.save({"w": torch.arange(10.0)}, tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as old, zipfile.ZipFile(tmp_path / "wide.pt", "w") as new:
        for info in old.infolist():
            with new.open(zipfile.ZipInfo(info.filename), "w", force_zip64=True) as member:
                member.write(old.read(info))
    assert torch.load(tmp_path / "wide.pt", weights_only=True)["w"][9] == 9
    with safepoint.open(tmp_path / "wide.pt") as tensors:
        assert tensors["w"].numpy().tolist() == list(range(10))


def test_a_file_over_four_gigabytes(tmp_path: Path) -> None:
    """A hole, which `torch.save` makes without touching the memory."""
    tensor = torch.empty((1 << 32) + 4096, dtype=torch.uint8)
    old = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        with torch.serialization.skip_data():
            torch.save({"w": tensor, "v": tensor[:2].clone()}, tmp_path / "large.pt")
    finally:
        torch.serialization.set_crc32_options(old)
    assert (tmp_path / "large.pt").stat().st_size > 1 << 32
    with safepoint.open(tmp_path / "large.pt") as tensors:
        assert tensors["w"].shape == ((1 << 32) + 4096,)
        assert tensors["w"][-3:].tolist() == [0, 0, 0]


def test_programs_and_classes_are_refused_by_name(tmp_path: Path) -> None:
    model, _ = network()
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(safepoint.UntrustedError, match=r"torch.nn.modules.container.Sequential"):
        safepoint.open(tmp_path / "whole.pt")
    torch.save({"s": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(safepoint.UnsupportedError, match="sparse"):
        safepoint.open(tmp_path / "sparse.pt")
    torch.save({"c": torch.view_as_complex(torch.ones(2, 2)).conj()}, tmp_path / "conj.pt")
    with pytest.raises(safepoint.UnsupportedError, match="conjugate"):
        safepoint.open(tmp_path / "conj.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(safepoint.UnsupportedError, match="TorchScript program"):
        safepoint.open(tmp_path / "script.pt")
