"""How the peers save and load the same state, made durable as a careful user would: fsync of each file and folder.

A peer is (save, load, path); it is left out, aloud, where its package is not installed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safepoint.cli.machine import sync


@dataclass(frozen=True)
class Peer:
    """One way to keep a model and its optimizer.

    Attributes:
        name: of it.
        path: file or folder that it writes.
        save: writes it, durably.
        load: puts it back into the live objects.
    """

    name: str
    path: Path
    save: Callable[[], object]
    load: Callable[[], object]

    def clear(self) -> None:
        """Remove what it wrote."""
        shutil.rmtree(self.path, ignore_errors=True) if self.path.is_dir() else self.path.unlink(missing_ok=True)


def flat(model: Any, optimizer: Any) -> dict[str, Any]:
    """Weights and moments by name, as safetensors wants them."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": tensor for slot, tensor in state.items()}
    return tensors


def torch_peers(root: Path, model: Any, optimizer: Any) -> list[Peer]:
    """safetensors, torch.save and PyTorch's distributed checkpoint, of a model and its optimizer."""
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file, save_file

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def save_torch() -> None:
        torch.save(state(), root / "state.pt")
        sync(root / "state.pt")

    def load_torch() -> None:
        loaded = torch.load(root / "state.pt", weights_only=True)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])

    def save_safetensors() -> None:
        save_file(flat(model, optimizer), root / "state.safetensors")
        sync(root / "state.safetensors")

    def load_safetensors() -> None:
        loaded = load_file(root / "state.safetensors")
        with torch.no_grad():
            for name, tensor in flat(model, optimizer).items():
                tensor.copy_(loaded[name])

    def save_dcp() -> None:
        dcp.save(flat(model, optimizer), checkpoint_id=str(root / "state.dcp"), no_dist=True)
        sync(root / "state.dcp")

    return [
        Peer("safetensors", root / "state.safetensors", save_safetensors, load_safetensors),
        Peer("torch.save", root / "state.pt", save_torch, load_torch),
        Peer(
            "torch DCP",
            root / "state.dcp",
            save_dcp,
            lambda: dcp.load(flat(model, optimizer), checkpoint_id=str(root / "state.dcp"), no_dist=True),
        ),
    ]


def array_peers(root: Path, arrays: dict[str, Any]) -> list[Peer]:
    """`tf.train.Checkpoint` over variables and Orbax over JAX arrays, of the same bytes."""
    return [*_tensorflow(root, arrays), *_orbax(root, arrays)]


def _tensorflow(root: Path, arrays: dict[str, Any]) -> list[Peer]:
    import tensorflow as tf

    variables = {f"v{i}": tf.Variable(array) for i, array in enumerate(arrays.values())}
    checkpoint = tf.train.Checkpoint(**variables)
    folder = root / "state.tf"

    def save() -> None:
        checkpoint.write(str(folder / "ckpt"))
        sync(folder)

    return [Peer("tf.train.Checkpoint", folder, save, lambda: checkpoint.read(str(folder / "ckpt")).assert_consumed())]


def _orbax(root: Path, arrays: dict[str, Any]) -> list[Peer]:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        print("orbax-checkpoint is not installed: left out (benchmarks/requirements.txt)", file=sys.stderr)
        return []
    import jax

    folder = root / "state.orbax"
    tree = {f"v{i}": jax.numpy.asarray(array) for i, array in enumerate(arrays.values())}
    checkpointer = ocp.PyTreeCheckpointer()

    def save() -> None:
        checkpointer.save(folder, tree, force=True)
        sync(folder)

    def load() -> None:
        jax.block_until_ready(checkpointer.restore(folder))

    return [Peer("Orbax", folder, save, load)]
