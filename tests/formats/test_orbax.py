"""Orbax checkpoints in all layouts, compared with what was saved; hostile and half-written ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tests.formats.comparing import assert_same, read_apart

import safepoint
from safepoint.cli.program import run as run_program

TREE = {
    "params": {"dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)}},
    "layers": [jnp.zeros(2), jnp.ones((2, 2), jnp.int8)],
    "step": 7,
    "rate": np.float64(0.1),
    "text": "<b>hello</b>",
    "empty": {},
    "nothing": None,
    "odd/name": np.arange(5),
}
EXPECTED = {
    "params/dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "params/dense/bias": np.asarray(TREE["params"]["dense"]["bias"]),
    "layers/0": np.zeros(2, np.float32),
    "layers/1": np.ones((2, 2), np.int8),
    "step": np.array(7),
    "rate": np.array(0.1),
    "odd/name": np.arange(5),
}
LAYOUTS = {
    "zarr in OCDBT": {"use_ocdbt": True},
    "zarr": {"use_ocdbt": False},
    "zarr3 in OCDBT": {"use_ocdbt": True, "use_zarr3": True},
    "zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a layout."""
    folder = tmp_path_factory.mktemp("orbax")
    for layout, options in LAYOUTS.items():
        ocp.PyTreeCheckpointer(**options).save(folder / layout, TREE)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_bits_that_were_saved(saved: Path, layout: str) -> None:
    with safepoint.open(saved / layout) as tensors:
        assert_same(tensors, EXPECTED)
        assert tensors.plain == {"text": "<b>hello</b>"}
        assert (tensors.kind, tensors.metadata["layout"]) == ("orbax", layout)
        assert np.array_equal(tensors["params/dense/kernel"][1:3, ::2], EXPECTED["params/dense/kernel"][1:3, ::2])


def test_neither_jax_nor_orbax_is_imported(saved: Path) -> None:
    found = read_apart(saved / "zarr", saved / "zarr3 in OCDBT")
    assert all(len(tensors) == len(EXPECTED) for tensors in found.values())


def test_steps_of_a_manager_and_their_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (3, 12):
            args = ocp.args.Composite(
                state=ocp.args.StandardSave({"w": jnp.full(3, float(step))}),
                other=ocp.args.StandardSave({"v": jnp.zeros(2)}),
                facts=ocp.args.JsonSave({"seed": 5}),
            )
            manager.save(step, args=args)
    with safepoint.open(tmp_path / "run") as tensors:
        assert set(tensors) == {"state/w", "other/v"}
        assert tensors["state/w"].numpy().tolist() == [12, 12, 12]
        assert tensors.metadata["step"] == 12
        assert tensors.metadata["items"] == {"facts": {"seed": 5}}
    with safepoint.open(tmp_path / "run" / "3" / "state") as tensors:
        assert tensors["w"].numpy().tolist() == [3, 3, 3]
    assert run_program(["show", str(tmp_path / "run" / "3"), "--stats"]) == 0
    assert "state/w" in capsys.readouterr().out
    (tmp_path / "run" / "12" / "commit_success.txt").unlink()
    document = json.loads((tmp_path / "run" / "12" / "_CHECKPOINT_METADATA").read_text())
    document["commit_timestamp_nsecs"] = None
    (tmp_path / "run" / "12" / "_CHECKPOINT_METADATA").write_text(json.dumps(document))
    with pytest.raises(safepoint.CorruptionError, match="never committed"):
        safepoint.open(tmp_path / "run" / "12")


def test_rows_of_a_large_array_are_read_by_themselves(tmp_path: Path) -> None:
    large = np.arange(3 << 20, dtype=np.float32).reshape(-1, 64)
    args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=1 << 20), {"w": large})
    ocp.PyTreeCheckpointer().save(tmp_path / "large", {"w": large}, save_args=args)
    with safepoint.open(tmp_path / "large") as tensors:
        assert np.array_equal(tensors["w"][40_000:40_010], large[40_000:40_010])
        assert np.array_equal(tensors["w"].numpy(), large)
        assert tensors.stats()["w"].maximum == large.max()


def test_without_tensorstore_it_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(safepoint.UnsupportedError, match="Orbax") as told:
        safepoint.open(saved / "zarr")
    assert told.value.hint == 'install it: pip install "safepoint[orbax]"'


def change(path: Path, edit: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def huge(folder: Path) -> None:
    """Sizes that TensorStore would take memory for at once, and end the process."""
    change(folder / "odd/name/.zarray", lambda d: d.update(shape=[1 << 40], chunks=[1 << 40]))


def wide_chunk(folder: Path) -> None:
    """A chunk of a terabyte of which five elements are wanted."""
    change(folder / "odd/name/.zarray", lambda d: d.update(chunks=[1 << 40]))


def way_out(folder: Path) -> None:
    """A name that leads to a file of somebody else's."""
    change(folder / "_METADATA", lambda d: d["tree_metadata"]["('step',)"]["key_metadata"][0].update(key="../../etc"))


def link(folder: Path) -> None:
    """An array's folder that is a link to another place."""
    shutil.move(folder / "step", folder.parent / "elsewhere")
    (folder / "step").symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path) -> None:
    """A chunk that nobody ever writes to the end of."""
    (folder / "step" / "0").unlink()
    os.mkfifo(folder / "step" / "0")


def no_tree(folder: Path) -> None:
    (folder / "_METADATA").write_text('{"tree_metadata": 3}')


def no_json(folder: Path) -> None:
    (folder / "_METADATA").write_text("[" * 100_000)


def no_array(folder: Path) -> None:
    shutil.rmtree(folder / "step")


def twice(folder: Path) -> None:
    """Two leaves of one name."""
    change(folder / "_METADATA", lambda d: d["tree_metadata"].update(x=d["tree_metadata"]["('step',)"]))


@pytest.mark.parametrize("harm", [huge, wide_chunk, way_out, link, pipe, no_tree, no_json, no_array, twice])
def test_a_hostile_folder_is_refused_when_it_is_opened(saved: Path, tmp_path: Path, harm: Callable) -> None:
    shutil.copytree(saved / "zarr", tmp_path / "copy")
    harm(tmp_path / "copy")
    with pytest.raises((safepoint.CorruptionError, safepoint.UnsupportedError)):
        safepoint.open(tmp_path / "copy")


def test_a_chunk_that_is_lost_or_damaged_is_told_when_it_is_read(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "zarr", tmp_path / "copy")
    (tmp_path / "copy" / "params.dense.kernel" / "0.0").unlink()
    (tmp_path / "copy" / "layers.1" / "0.0").write_bytes(b"no zstd")
    with safepoint.open(tmp_path / "copy") as tensors:
        for name in ("params/dense/kernel", "layers/1"):
            with pytest.raises(safepoint.CorruptionError) as told:
                tensors[name].numpy()
            assert told.value.name == name
        assert tensors["step"].numpy() == 7


def bomb(num_bytes: int) -> bytes:
    """A Zstandard frame of so many zeros: four bytes for each 128 KiB."""
    block = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0\x58" + block * (num_bytes >> 17) + b"\1\0\0"


@pytest.mark.parametrize("place", ["alone", "behind another frame"])
@pytest.mark.parametrize("layout", ["zarr", "zarr3"])
def test_a_chunk_that_unpacks_to_gigabytes_is_refused_before(
    saved: Path, tmp_path: Path, layout: str, place: str
) -> None:
    shutil.copytree(saved / layout, tmp_path / "copy")
    (chunk,) = (p for p in (tmp_path / "copy" / "layers.1").rglob("*") if p.is_file() and "zarr" not in p.name)
    chunk.write_bytes((b"" if place == "alone" else chunk.read_bytes()) + bomb(8 << 30))
    with safepoint.open(tmp_path / "copy") as tensors:
        with pytest.raises(safepoint.CorruptionError, match="unpacks to more than it holds") as told:
            tensors["layers/1"].numpy()
        assert told.value.name == "layers/1"
        assert tensors["layers/0"].numpy().tolist() == [0, 0]


def test_chunks_packed_by_what_cannot_be_looked_at_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "zarr", tmp_path / "copy")
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    change(tmp_path / "copy" / "layers.1" / ".zarray", lambda d: d.update(compressor=blosc))
    with pytest.raises(safepoint.UnsupportedError, match="packed with blosc"):
        safepoint.open(tmp_path / "copy")


def test_a_damaged_store_raises_nothing_but_our_errors(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved / "zarr in OCDBT", folder)
    files = [folder / "manifest.ocdbt", *(folder / "d").iterdir()]
    rng = np.random.default_rng(1)
    told = 0
    for file in files:
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[int(rng.integers(len(whole)))] ^= 0x41
        for data in (whole[: len(whole) // 2], b"", bytes(changed)):
            file.write_bytes(data)
            try:
                with safepoint.open(folder) as tensors:
                    for tensor in tensors.values():
                        tensor.numpy()
            except safepoint.SafepointError:
                told += 1
        file.write_bytes(whole)
    assert told >= 2
