"""The ways of keeping a state that `safepoint bench` compares: ours, and those of whatever else is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.api.checkpoint import Checkpoint
from safepoint.cli.machine import page_aligned, raw_read, raw_write, sync

State = dict[str, NDArray[np.float32]]

_HIDDEN = 768
_SHAPES = (
    (_HIDDEN, 3 * _HIDDEN),
    (3 * _HIDDEN,),
    (_HIDDEN, _HIDDEN),
    (_HIDDEN,),
    (_HIDDEN, 4 * _HIDDEN),
    (4 * _HIDDEN, _HIDDEN),
)


@final
@dataclass(frozen=True, slots=True)
class Way:
    """One way of writing a state and getting it back.

    Attributes:
        name: of it.
        path: file or folder that it writes.
        save: writes it, durably.
        load: puts it back into the state's own memory.
        checked: whether loading checks the bytes.
    """

    name: str
    path: Path
    save: Callable[[], object]
    load: Callable[[], object]
    checked: bool = False

    def clear(self) -> None:
        """Remove what it wrote."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def make_state(num_bytes: int) -> State:
    """Random float32 tensors in the shapes of a transformer, about that many bytes in all."""
    rng = np.random.default_rng(0)
    state: State = {}
    left = num_bytes // 4
    while left > 0:
        shape = _SHAPES[len(state) % len(_SHAPES)]
        if int(np.prod(shape)) > left:
            shape = (left,)
        state[f"block{len(state) // len(_SHAPES)}.w{len(state) % len(_SHAPES)}"] = rng.random(shape, np.float32)
        left -= int(np.prod(shape))
    return state


def raw(root: Path, state: State) -> Way:
    """The disk itself."""
    size = sum(array.nbytes for array in state.values())
    memory, path = page_aligned(32 << 20), root / "raw"
    return Way("raw disk", path, lambda: raw_write(path, size, memory), lambda: raw_read(path, memory, direct=True))


def ours(root: Path, state: State) -> Way:
    """A save and an all-or-nothing restore of safepoint."""
    checkpoint, path = Checkpoint(state=state), root / "safepoint"
    return Way("safepoint", path, lambda: checkpoint.save(path), lambda: checkpoint.restore(path), checked=True)


def peers(root: Path, state: State) -> list[Way]:
    """What else is installed here, of safetensors, PyTorch and NumPy."""
    made = [_numpy(root, state)]
    if _installed("safetensors"):
        made.insert(0, _safetensors(root, state))
    if _installed("torch"):
        made.append(_torch(root, state))
    return made


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _copied(loaded: Any, state: State) -> None:
    for name, array in state.items():
        array[...] = loaded[name]


def _safetensors(root: Path, state: State) -> Way:
    library: Any = importlib.import_module("safetensors.numpy")
    path = root / "state.safetensors"

    def save() -> None:
        library.save_file(state, path)
        sync(path)

    return Way("safetensors", path, save, lambda: _copied(library.load_file(path), state))


def _numpy(root: Path, state: State) -> Way:
    path = root / "state.npz"

    def save() -> None:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **state)
        sync(path)

    def load() -> None:
        with np.load(path, allow_pickle=False) as loaded:
            _copied(loaded, state)

    return Way("numpy.savez", path, save, load, checked=True)  # by the CRC of the zip archive


def _torch(root: Path, state: State) -> Way:
    torch: Any = importlib.import_module("torch")
    path = root / "state.pt"
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}

    def save() -> None:
        torch.save(tensors, path)
        sync(path)

    def load() -> None:
        for name, tensor in torch.load(path, weights_only=True).items():
            tensors[name].copy_(tensor)

    return Way("torch.save", path, save, load)
