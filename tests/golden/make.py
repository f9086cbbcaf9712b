"""Makes the golden repository and model file of format version 1: always the same bytes.

Run it (`python tests/golden/make.py`) only to add to what it makes; what is committed must stay readable for ever.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from safepoint.repository import Repository, write_model_file
from safepoint.tree import Branch, LeafRef, StateTree, Tensor, TensorSpec

SECRET = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
-----END PRIVATE KEY-----
"""
PUBLIC = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAiojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=
-----END PUBLIC KEY-----
"""

HERE = Path(__file__).parent


def contents() -> list[dict[str, Any]]:
    """What the three snapshots contain."""
    tied = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    first: dict[str, Any] = {
        "model/embedding.weight": tied,
        "model/head.weight": tied,
        "model/transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "model/big_endian": np.arange(4, dtype=">i4"),
        "model/bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
        "model/float8": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
        "model/float8_unknown_to_safetensors": np.arange(5).astype(ml_dtypes.float8_e4m3b11fnuz),
        "model/int4": np.arange(-3, 3).astype(ml_dtypes.int4),
        "model/bool": np.array([True, False]),
        "model/complex64": np.array([1 + 2j], np.complex64),
        "model/complex128": np.array([1e300 - 1j, 0]),
        "model/scalar": np.array(3, np.uint16),
        "model/empty": np.zeros((0, 5), np.float16),
        "model/ünï/日本": np.arange(3, dtype=np.uint8),
        "state/step": 1,
        "state/none": None,
        "state/flag": True,
        "state/float": 0.1,
        "state/whole": 1.0,
        "state/tiny": 5e-324,
        "state/nan": float("nan"),
        "state/-inf": float("-inf"),
        "state/-0": -0.0,
        "state/big": -(2**100),
        "state/complex": complex(float("inf"), -0.5),
        "state/text": 'quotes " and \\ and é',
        "state/surrogate": "a\udc80",
        "state/bytes": b"\x00\xff",
        "state/long": "0123456789" * 6_554,
    }
    second = {**first, "model/bool": np.array([False, False]), "state/step": 2}
    third = {**second, "model/scalar": np.array(4, np.uint16), "state/step": 3, "new/x": np.ones(3, np.int8)}
    return [first, second, third]


def tree_of(content: dict[str, Any]) -> StateTree:
    leaves = {n: Tensor.of(x) if isinstance(x, np.ndarray) else x for n, x in content.items()}
    if "model/float8" in leaves:  # a dtype that NumPy lacks
        half = TensorSpec((2,), "complex32")
        leaves["model/complex32"] = Tensor.of_bytes(np.arange(8, dtype=np.uint8), half)
    state = Branch(
        "dict", ("step", 1, None), (LeafRef("step"), LeafRef("none"), Branch("list", (), (LeafRef("flag"),)))
    )
    return StateTree(leaves, Branch("dict", ("model", "state"), (Branch("torch.module"), state)))


def _predictable() -> Callable[[int], str]:
    count = 0

    def token_hex(num_bytes: int) -> str:
        nonlocal count
        count += 1
        return hashlib.sha256(str(count).encode()).hexdigest()[: 2 * num_bytes]

    return token_hex


def make(root: Path) -> None:
    """Make `root/v1` and `root/v1.model`."""
    now = datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC)

    def clock() -> datetime:
        nonlocal now
        now += timedelta(minutes=1)
        return now

    # Trying a store out draws names too, and leaves nothing behind.
    with mock.patch.object(secrets, "token_hex", _predictable()), mock.patch("safepoint.repository.commit.probe"):
        repository = Repository(root / "v1", clock=clock)
        first, second, third = contents()
        environment = {"python": "3.11.0"}
        config = {"lr": 1e-3, "layers": [64, 10], "name": "golden"}
        repository.commit(
            tree_of(first), step=10, metrics={"loss": 0.5}, config=config, tags=["start"], environment=environment
        )
        repository.commit(tree_of(second), step=20, metrics={"loss": 0.25, "nan": float("nan")}, config=config)
        repository.commit(tree_of(third), step=30, metrics={"loss": 0.75})
        repository.tag("20", "good")
        repository.add_metrics("20", {"accuracy": 0.875})
        repository.verify("10")
        repository.commit(tree_of({"gone": 1}), parent=None)
        repository.commit(tree_of({"lost/w": np.ones(2)}), parent=2)
        repository.delete("id:3")
        repository.collect()
        model = {name: leaf for name, leaf in first.items() if name.startswith(("model/", "state/step"))}
        model["optimizer/m"] = np.arange(3, dtype=np.float32)
        structure = {"class": "golden.Model", "layers": [64, 10]}
        write_model_file(root / "v1.model", tree_of(model), structure=structure, format="golden")
        make_moved(Repository(root / "v1-moved", clock=clock))
    for name in ("v1", "v1-moved"):
        (root / name / "lock").unlink()


def moved_contents() -> dict[int, dict[str, Any]]:
    """What snapshots 1 and 3 of `v1-moved` hold."""
    kept, w = np.arange(4000), np.arange(500, dtype=np.float32)
    return {1: {"kept": kept, "w": w, "step": 1}, 3: {"kept": kept, "w": w, "step": 3}}


def make_moved(repository: Repository) -> None:
    """One that was signed and compacted, in which damage was healed (of snapshot 1) and was not (of snapshot 2)."""
    contents = moved_contents()
    noise = np.random.default_rng(0).integers(0, 255, 60_000, np.uint8)
    repository.commit(tree_of({"kept": contents[1]["kept"], "noise": noise}), step=0)
    repository.commit(tree_of(contents[1]), step=1)
    repository.sign("id:1", SECRET)
    repository.commit(tree_of({**contents[1], "w": contents[1]["w"] * 2, "step": 2}), step=2)
    repository.delete("id:0")
    repository.compact()
    flip(repository, "id:1")
    repository.verify("id:1")
    repository.commit(tree_of(contents[3]), step=3)
    flip(repository, "id:2")
    repository.verify("id:2")


def flip(repository: Repository, reference: str) -> None:
    (block,) = repository.manifest(repository.resolve(reference)).stored["w"].blocks
    path = Path(repository.location) / "packs" / f"{block.pack}.safetensors"
    data = bytearray(path.read_bytes())
    data[block.offset] ^= 1
    path.write_bytes(data)


if __name__ == "__main__":
    for old in (HERE / "v1", HERE / "v1.model", HERE / "v1-moved"):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    make(HERE)
