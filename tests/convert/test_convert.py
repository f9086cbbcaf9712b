"""`safepoint convert` without frameworks: every format it writes, names, casts, and what is refused or goes wrong."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickletools
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.cli.conftest import Result, safepoint
from tests.crash.processes import Child
from tests.open.conftest import safetensors_bytes

import safepoint as library
from safepoint.api.convert import convert
from safepoint.api.outgoing import Ledger
from safepoint.cli.convert import convert as convert_command
from safepoint.cli.program import run as run_program
from safepoint.formats.writing import TARGETS
from safepoint.repository import Repository
from safepoint.tree import StateTree, Tensor

__all__ = ["safepoint"]

Call = Callable[..., Result]
RNG = np.random.default_rng(0)
ARRAYS = {
    "encoder.weight": RNG.random((30, 40)).astype(np.float32),
    "encoder/bias": RNG.random(30),
    "flag": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
    "count": np.array([1, 2**40, -3]),
    "complex": np.array([1 + 2j], np.complex64),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").write_bytes(safetensors_bytes(ARRAYS, {"format": "pt", "note": "mine"}))
    return tmp_path


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    with library.open(path) as tensors:
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def check_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray] = ARRAYS) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def here_now() -> list[str]:
    return sorted(entry.name for entry in Path().iterdir())


def leftovers() -> list[str]:
    return [name for name in here_now() if name.startswith(".")]


def test_tensors_may_be_asked_for_in_any_order() -> None:
    """Most formats ask in order, and the next piece is read meanwhile; one that does not gets the same bytes."""
    arrays = {name: np.full(40 << 18, index, np.float32) for index, name in enumerate("abc")}
    arrays["nothing"] = np.zeros(0, np.float32)
    for order in itertools.permutations(arrays):
        told: list[tuple[int, int]] = []
        total = sum(array.nbytes for array in arrays.values())
        ledger = Ledger(total, lambda done, of: told.append((done, of)))  # noqa: B023
        outgoing = {n: ledger.outgoing(n, Tensor.of(a), dtype=None, whole=False) for n, a in arrays.items()}
        with ledger.handing_over(outgoing, ahead=True) as read:
            found = {name: b"".join(piece.tobytes() for piece in read[name].pieces()) for name in order}
        assert found == {name: array.tobytes() for name, array in arrays.items()}
        assert told[-1] == (total, 2 * total)


@pytest.mark.parametrize(
    "target, place",
    [("b.safetensors", "b.safetensors"), ("b.npz", "b.npz"), ("b.pt", "b.pt"), ("new/folder/b.index", "new/folder/b")],
)
def test_every_format_holds_what_the_source_held(safepoint: Call, target: str, place: str) -> None:
    result = safepoint("convert", "a.safetensors", target, "--json")
    assert result.err == ""
    assert result.json["target"] == place
    assert result.json["names"] == {name: name for name in ARRAYS}
    assert result.json["left_out"] == []
    check_same(arrays(place))
    assert leftovers() == []


def test_numpy_itself_reads_npz(safepoint: Call) -> None:
    safepoint("convert", "a.safetensors", "b.npz")
    with np.load("b.npz") as archive:
        check_same(dict(archive.items()))
    with zipfile.ZipFile("b.npz") as archive:
        assert archive.testzip() is None


def test_a_pt_file_is_a_pickle_that_names_tensors_and_nothing_else(safepoint: Call) -> None:
    assert safepoint("convert", "a.safetensors", "b.pt").code == 0
    with zipfile.ZipFile("b.pt") as archive:
        assert archive.testzip() is None
        pickle = archive.read("archive/data.pkl")
        for info in archive.infolist():
            archive.fp.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(archive.fp.read(2), "little") for _ in range(2))
            assert (info.header_offset + 30 + name + extra) % 64 == 0
    named = {argument for opcode, argument, _ in pickletools.genops(pickle) if opcode.name == "GLOBAL"}
    storages = {"FloatStorage", "DoubleStorage", "BoolStorage", "LongStorage", "ComplexFloatStorage"}
    expected = {f"torch {name}" for name in storages}
    assert named == expected | {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}


def test_large_tensors_cross_every_border(safepoint: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 16 kB and segments of 12 kB stand for those of 16 and 8 MiB."""
    monkeypatch.setattr("safepoint.codec.blocks.BLOCK_BYTES", 16 << 10)
    monkeypatch.setattr("safepoint.api.outgoing.BLOCK_BYTES", 16 << 10)
    monkeypatch.setattr("safepoint.formats.writing.output._SEGMENT_BYTES", 12 << 10)
    x = RNG.integers(0, 255, (50 << 10) + 1234, np.uint8)
    halves = (RNG.random(20_000) - 0.5).astype(np.float16)
    Path("a.safetensors").write_bytes(safetensors_bytes({"halves": halves, "x": x, "y": x[:1000]}))
    for target, place in (("b.pt", "b.pt"), ("b.index", "b"), ("b.safetensors", "b.safetensors"), ("b.npz", "b.npz")):
        assert safepoint("convert", "a.safetensors", target).code == 0
        check_same(arrays(place), {"halves": halves, "x": x, "y": x[:1000]})
        assert safepoint("convert", place, f"c{target}", "--dtype", "f32").code == 0
        check_same(arrays(f"c{place}"), {"halves": halves.astype(np.float32), "x": x, "y": x[:1000]})
    for file in ("b.pt", "b.npz", "cb.pt"):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None


def test_metadata_and_values_stay_where_they_have_a_place(safepoint: Call) -> None:
    tree = StateTree({"w": Tensor.of(np.ones(2)), "epoch": 3, "lr": 0.1, "by": b"\xff", "none": None, "name": "x"})
    Repository("run").commit(StateTree.join({"model": tree}), step=7)
    safepoint("convert", "run", "b.pt", "--to", "pytorch")
    with library.open("b.pt") as tensors:
        assert dict(tensors.plain) == {"epoch": 3, "lr": 0.1, "by": b"\xff", "none": None, "name": "x"}
    safepoint("convert", "run", "b.safetensors")
    with library.open("b.safetensors") as tensors:
        expected = {"epoch": "3", "lr": "0.1", "by": '{"bytes": "/w=="}', "none": "null", "name": "x"}
        assert tensors.metadata["metadata"] == expected
    safepoint("convert", "a.safetensors", "c.safetensors")
    with library.open("c.safetensors") as tensors:
        assert tensors.metadata["metadata"] == {"format": "pt", "note": "mine"}
    result = safepoint("convert", "run", "b.npz")
    assert "5 plain values left out, which npz has no place for: epoch, lr, by, none, name" in result.err
    assert safepoint("convert", "run", "d.npz", "--json").json["left_out"] == ["epoch", "lr", "by", "none", "name"]


def test_the_tracked_name_of_an_only_object_is_left_out(safepoint: Call) -> None:
    parts = {name: StateTree({"w": Tensor.of(np.ones(2)), "step": 1}) for name in ("model", "optimizer")}
    Repository("run").commit(StateTree.join(parts))
    safepoint("convert", "run", "both.safetensors")
    assert arrays("both.safetensors").keys() == {"model/w", "optimizer/w"}
    result = safepoint("convert", "run@latest", "one.safetensors", "--select", "model", "--json")
    assert result.json["names"] == {"model/w": "w"}
    assert arrays("one.safetensors").keys() == {"w"}
    safepoint("convert", "run", "renamed.npz", "--select", "model", "--rename", "^w=weight")
    assert arrays("renamed.npz").keys() == {"weight"}


def test_into_a_repository_and_back(safepoint: Call) -> None:
    assert safepoint("convert", "a.safetensors", "run").code == 0
    found = arrays("run")
    check_same({name.removeprefix("model/"): array for name, array in found.items()})
    target = {name: np.zeros_like(array) for name, array in ARRAYS.items()}
    library.Checkpoint(model=target).restore("run")
    check_same(target)
    safepoint("convert", "run", "back.safetensors")
    check_same(arrays("back.safetensors"))
    result = safepoint("convert", "a.safetensors", "run")
    assert result.code == 6
    assert "safepoint import a.safetensors --into run" in result.err


def test_a_file_of_parts_becomes_a_checkpoint_of_parts(safepoint: Call) -> None:
    Path("a.safetensors").write_bytes(safetensors_bytes({"state_dict/w": np.ones(2), "ema/w": np.zeros(3)}))
    names = safepoint("convert", "a.safetensors", "run", "--json").json["names"]
    assert names == {"state_dict/w": "model/w", "ema/w": "ema/w"}
    assert Repository("run").manifest(Repository("run").resolve()).tree.names() == ("model", "ema")


def test_a_snapshot_keeps_what_was_said_about_it(safepoint: Call) -> None:
    old = Repository("run")
    tree = StateTree.join({"model": StateTree({"w": Tensor.of(np.ones(2)), "n": 1}), "more": StateTree({"k": 2})})
    before = old.commit(tree, step=7, metrics={"loss": 0.5}, tags=["good"], config={"lr": 1}, environment={"x": "1"})
    assert safepoint("convert", "run@good", "copy", "--dtype", "f32").code == 0
    after = Repository("copy").resolve("good")
    for word in ("step", "time", "metrics", "tags", "config", "environment"):
        assert getattr(after, word) == getattr(before, word), word
    manifest = Repository("copy").manifest(after)
    assert manifest.tree.skeleton == old.manifest(before).tree.skeleton
    assert manifest.tree.tensors["model/w"].spec.dtype == "float32"
    assert safepoint("convert", "run", "part", "--select", "model").code == 0
    assert Repository("part").manifest(Repository("part").resolve()).tree.names() == ("model",)


def test_floating_point_tensors_are_cast_and_no_others(safepoint: Call) -> None:
    array = np.array([1.0, 1 + 2**-9, 65504, np.nan, np.inf, -0.0], np.float32)
    Path("a.safetensors").write_bytes(safetensors_bytes({"w": array, "n": np.arange(3), "d": np.array([1e-40])}))
    document = safepoint("convert", "a.safetensors", "b.safetensors", "--dtype", "bf16", "--json").json
    assert document["cast"] == ["w", "d"]
    found = arrays("b.safetensors")
    assert found["w"].tobytes() == array.astype(ml_dtypes.bfloat16).tobytes()
    assert found["n"].dtype == np.int64
    assert safepoint("convert", "b.safetensors", "c.npz", "--dtype", "f32").code == 0
    assert arrays("c.npz")["w"].dtype == np.float32
    safepoint("convert", "a.safetensors", "d.npz", "--dtype", "f16")
    assert arrays("d.npz")["w"].tobytes() == array.astype(np.float16).tobytes()


def test_a_number_too_large_for_the_dtype_is_refused(safepoint: Call) -> None:
    Path("a.safetensors").write_bytes(safetensors_bytes({"fine": np.ones(2), "w": np.array([1, -65520.0])}))
    result = safepoint("convert", "a.safetensors", "b.safetensors", "--dtype", "f16")
    assert result.code == 7
    assert "w has numbers too large for float16; nothing was written" in result.err
    assert "expected: at most 65504" in result.err
    assert "--dtype bf16 or f32" in result.err
    assert safepoint("convert", "a.safetensors", "run", "--dtype", "f16").code == 7
    assert here_now() == ["a.safetensors"]
    assert safepoint("convert", "a.safetensors", "b.safetensors", "--dtype", "bf16").code == 0


@pytest.mark.parametrize(
    "dtype, target, hint",
    [
        ("bfloat16", "b.npz", "--dtype f16 or f32"),
        ("float8_e4m3fn", "b.npz", "--dtype"),
        ("float8_e8m0fnu", "b.index", "--dtype"),
    ],
)
def test_a_dtype_that_the_format_lacks_is_refused_by_name(safepoint: Call, dtype: str, target: str, hint: str) -> None:
    array = np.ones(2, getattr(ml_dtypes, dtype))
    Path("a.safetensors").write_bytes(safetensors_bytes({"fine": np.ones(2), "odd": array}))
    result = safepoint("convert", "a.safetensors", target)
    assert result.code == 7
    assert f"has no {dtype}, which 'odd' is" in result.err
    assert hint in result.err
    assert safepoint("convert", "a.safetensors", target, "--dtype", "f32").code == 0


def test_complex_numbers_have_no_place_in_safetensors(safepoint: Call) -> None:
    np.savez("a.npz", c=np.ones(2, np.complex128))
    result = safepoint("convert", "a.npz", "b.safetensors")
    assert result.code == 7
    assert "leave it out with --select" in result.err


@pytest.mark.parametrize("names", [("A", "a"), ("x/../y",), ("/x",)])
def test_names_that_an_archive_may_not_have(safepoint: Call, names: tuple[str, ...]) -> None:
    Path("a.safetensors").write_bytes(safetensors_bytes({name: np.ones(1) for name in names}))
    result = safepoint("convert", "a.safetensors", "b.npz")
    assert result.code == 7
    assert "--rename REGEX=NEW" in result.err
    assert safepoint("convert", "a.safetensors", "b.pt").code == 0
    assert arrays("b.pt").keys() == set(names)


def test_nothing_is_overwritten_without_force(safepoint: Call) -> None:
    Path("b.npz").write_text("precious")
    result = safepoint("convert", "a.safetensors", "b.npz")
    assert result.code == 6
    assert "--force" in result.err
    assert Path("b.npz").read_text() == "precious"
    assert safepoint("convert", "a.safetensors", "b.npz", "--force").code == 0
    check_same(arrays("b.npz"))
    Path("folder.npz").mkdir()
    Path("link.npz").symlink_to("b.npz")
    Path("lost.npz").symlink_to("nowhere")
    os.mkfifo("pipe.npz")
    for name in ("folder.npz", "link.npz", "lost.npz", "pipe.npz"):
        assert safepoint("convert", "a.safetensors", name, "--force").code == 6
    safepoint("convert", "a.safetensors", "c.index")
    assert safepoint("convert", "a.safetensors", "c", "--to", "tensorflow").code == 6
    result = safepoint("convert", "a.safetensors", "c.index", "--force")
    assert result.code == 7
    assert "several files" in result.err
    check_same(arrays("c"))


def test_the_target_may_not_be_the_source_or_lie_in_it(safepoint: Call) -> None:
    before = Path("a.safetensors").read_bytes()
    assert safepoint("convert", "a.safetensors", "a.safetensors", "--force").code == 7
    Path("link.safetensors").symlink_to("a.safetensors")
    assert safepoint("convert", "a.safetensors", "link.safetensors", "--force").code == 7
    assert Path("a.safetensors").read_bytes() == before
    Path("shards").mkdir()
    for index in range(2):
        Path(f"shards/{index}.safetensors").write_bytes(safetensors_bytes({f"w{index}": np.full(3, index)}))
    weight_map = {"w0": "0.safetensors", "w1": "1.safetensors"}
    Path("shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert safepoint("convert", "shards", "shards/model.safetensors").code == 7
    assert safepoint("convert", "shards/model.safetensors.index.json", "shards/0.safetensors", "--force").code == 7
    assert safepoint("convert", "shards", "one.safetensors").code == 0
    assert {name: array.tolist() for name, array in arrays("one.safetensors").items()} == {"w0": [0] * 3, "w1": [1] * 3}
    Repository("run").commit(StateTree.join({"model": StateTree({"w": Tensor.of(np.ones(2))})}))
    assert safepoint("convert", "run", "run/packs/b.npz").code == 7


@pytest.mark.parametrize("call", ["posix_fallocate", "pwritev", "fsync"])
@pytest.mark.parametrize("target", ["b.pt", "b.index", "b.safetensors", "run"])
def test_a_full_disk_leaves_what_was_there(
    safepoint: Call, monkeypatch: pytest.MonkeyPatch, call: str, target: str
) -> None:
    if target in {"b.pt", "b.safetensors"}:
        Path(target).write_text("precious")

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        result = safepoint("convert", "a.safetensors", target, "--force")
    assert result.code == 12
    assert "bytes are free" in result.err
    kept = [target] if target in {"b.pt", "b.safetensors"} else []
    assert here_now() == sorted(["a.safetensors", *kept])
    assert all(Path(name).read_text() == "precious" for name in kept)


def test_what_cannot_be_read_back_does_not_take_the_name(safepoint: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("b.safetensors").write_text("precious")
    real = os.pwritev

    def damage(descriptor: int, buffers: list[Any], offset: int) -> int:
        data = bytearray(b"".join(bytes(buffer) for buffer in buffers))
        data[-5000] ^= 1  # in the last tensor, before the padding of a page
        return real(descriptor, [data], offset)

    with monkeypatch.context() as patch:
        patch.setattr("safepoint.store.files._DIRECT", 0)
        patch.setattr(os, "pwritev", damage)
        result = safepoint("convert", "a.safetensors", "b.safetensors", "--force")
    assert result.code == 5
    assert Path("b.safetensors").read_text() == "precious"
    assert leftovers() == []


def test_a_damaged_source_is_an_error_and_nothing_is_written(safepoint: Call) -> None:
    safepoint("convert", "a.safetensors", "b.pt")
    data = bytearray(Path("b.pt").read_bytes())
    data[data.index(ARRAYS["encoder.weight"].tobytes()) + 77] ^= 1
    Path("b.pt").write_bytes(data)
    result = safepoint("convert", "b.pt", "c.npz")
    assert result.code == 5
    assert not Path("c.npz").exists()
    assert safepoint("convert", "nowhere.pt", "c.npz").code == 10
    Path("a.safetensors").write_bytes(safetensors_bytes({}))
    assert safepoint("convert", "a.safetensors", "c.npz").code == 10


def test_the_suffix_or_to_says_the_format(safepoint: Call) -> None:
    result = safepoint("convert", "a.safetensors", "b.ckpt")
    assert result.code == 7
    assert "Lightning's and TensorFlow's" in result.err
    assert safepoint("convert", "a.safetensors", "b.onnx").code == 7
    assert safepoint("convert", "a.safetensors", "b.ckpt", "--to", "pytorch").code == 0
    assert safepoint("convert", "a.safetensors", "c.ckpt", "--to", "tensorflow").code == 0
    with library.open("b.ckpt") as one, library.open("c.ckpt") as two:
        assert (one.kind, two.kind) == ("pytorch", "tensorflow")
    assert safepoint("convert", "a.safetensors", "b.pt", "--to", "onnx").code == 2
    for name in ("b.pt/", "runs/v1"):
        assert safepoint("convert", "a.safetensors", name, "--json").json["format"] == "repository"
    assert "none for a repository" in safepoint("convert", "a.safetensors", "runs/v1.5").err
    assert safepoint("convert", "a.safetensors", "b.pt", "--select", "nothing.there").code == 4
    assert safepoint("convert", "a.safetensors", "x" * 5000 + ".pt").code == 10


def test_a_tensor_without_a_name_gets_one(safepoint: Call) -> None:
    np.save("a.npy", np.arange(6).reshape(2, 3))
    assert safepoint("convert", "a.npy", "b.safetensors", "--json").json["names"] == {"": "array"}
    assert arrays("b.safetensors")["array"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_quiet_prints_nothing_and_people_read_one_line(safepoint: Call) -> None:
    assert safepoint("convert", "a.safetensors", "b.npz", "-q") == Result(0, "", "")
    out = safepoint("convert", "a.safetensors", "b.pt").out
    assert out.startswith("b.pt  ·  pytorch  ·  7 tensors")
    assert max(map(len, out.splitlines())) <= 80


def test_names_that_were_made_to_do_harm(safepoint: Call) -> None:
    for name in ("a\nb", "\u202egpj.exe", "x" * 2000):
        Path("a.safetensors").write_bytes(safetensors_bytes({name: np.ones(1)}))
        for target in ("b.pt", "b.safetensors", "b.index", "b.npz", "run"):
            assert safepoint("convert", "a.safetensors", target).code == 7
    assert here_now() == ["a.safetensors"]
    assert safepoint("convert", "a.safetensors", "b.pt", "--rename", "x+=w").code == 0


@pytest.mark.parametrize("target, write", [("b.pt", 1), ("b.index", 2)])
def test_a_kill_leaves_what_was_there_and_the_next_run_cleans_up(safepoint: Call, target: str, write: int) -> None:
    if target == "b.pt":
        Path(target).write_text("precious")
    real, writes = os.pwritev, itertools.count(1)

    def pwritev(*arguments: Any) -> int:
        if next(writes) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    def work(_say: Callable[[object], None]) -> None:
        os.pwritev = pwritev
        run_program(["convert", "a.safetensors", target, "--force"])

    assert Child(work).wait()[0] == -signal.SIGKILL
    assert not Path("b.index").exists()
    assert target != "b.pt" or Path(target).read_text() == "precious"
    assert safepoint("convert", "a.safetensors", target, "--force").code == 0
    check_same(arrays(target.removesuffix(".index")))
    assert leftovers() == []


def test_archives_of_64_bits(safepoint: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte stands for four gigabytes, and three members for 65,535."""
    monkeypatch.setattr("safepoint.formats.writing.zip_file._LIMIT", 1000)
    monkeypatch.setattr("safepoint.formats.writing.zip_file._LIMIT_COUNT", 3)
    for target in ("b.npz", "b.pt"):
        assert safepoint("convert", "a.safetensors", target).code == 0
        check_same(arrays(target))
        with zipfile.ZipFile(target) as archive:
            assert archive.testzip() is None
            assert len(archive.infolist()) == len(ARRAYS) + (3 if target == "b.pt" else 0)


def test_progress_ends_where_all_was_written_and_read_back() -> None:
    told: list[tuple[int, int]] = []
    convert("a.safetensors", "b.pt", progress=lambda done, total: told.append((done, total)))
    total = 2 * sum(array.nbytes for array in ARRAYS.values())
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_the_command_knows_every_format() -> None:
    (option,) = [parameter for parameter in convert_command.params if parameter.name == "to"]
    assert {*option.type.choices} == {*TARGETS, "repository"}
    for target in TARGETS.values():
        assert f"`{target.suffixes[0]}`" in (Path(__file__).parents[2] / "docs/files.md").read_text()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_conversion_that_fails_takes_nothing_of_others_with_it(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody begins to save into the same place while the conversion is on its way."""
    real = Repository.commit
    theirs = StateTree({"w": Tensor.of(np.ones(3))})

    def commit(self: Repository, tree: StateTree, **options: Any) -> Any:
        monkeypatch.setattr(Repository, "commit", real)
        if when == "before":
            Repository("run").commit(theirs, step=7)
        real(self, tree, **options)
        Repository("run").commit(theirs, step=7)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Repository, "commit", commit)
    with pytest.raises((OSError, library.ConflictError)):
        convert("a.safetensors", "run")
    assert Repository("run").resolve().step == 7
    assert Repository("run").verify().ok


def test_a_conversion_that_fails_leaves_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Repository, tree: StateTree, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Repository, "commit", full)
    with pytest.raises(OSError, match="full"):
        convert("a.safetensors", "run")
    assert not Path("run").exists()
