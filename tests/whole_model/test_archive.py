"""Native `.keras` files: the same models by the same safe path; everything made to mislead a reader is refused."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tests.attacks.watching import watched
from tests.whole_model.models import X, Y, assert_same, compiled, state_of
from tests.whole_model.test_models import BUILDERS

import safepoint
from safepoint.repository.model_file import read_model_file, write_model_file

layers = keras.layers
WEIGHTS = "model.weights.h5"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keras.utils.set_random_seed(3)
    model = compiled(layers.Dense(40), layers.BatchNormalization())
    path = tmp_path_factory.mktemp("archive") / "model.keras"
    model.save(path)
    safepoint.load_model(path)  # what is imported late is imported now
    return model, path


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_a_keras_file_gives_the_model_keras_would_give(kind, tmp_path):
    model = BUILDERS[kind]()
    model.compile(keras.optimizers.Adam(use_ema=True), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    ours = safepoint.load_model(tmp_path / "model.keras")
    assert state_of(ours, seeds=False) == state_of(model, seeds=False)
    assert ours.predict(X, verbose=0).tobytes() == model.predict(X, verbose=0).tobytes()


def test_a_keras_file_has_the_names_of_our_own(saved, tmp_path):
    model, path = saved
    loaded = safepoint.load_model(path)
    safepoint.save_model(loaded, tmp_path / "ours")
    safepoint.save_model(model, tmp_path / "direct")
    names = [list(read_model_file(tmp_path / name).tree.leaves) for name in ("ours", "direct")]
    assert names[0] == names[1]
    assert "optimizer/layers/dense/vars/0/momentum" in names[0]
    assert state_of(loaded) == state_of(model)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_precisions_and_wrapped_optimizers(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(layers.Dense(30))
        model.save(tmp_path / "model.keras")
        assert state_of(safepoint.load_model(tmp_path / "model.keras")) == state_of(model)
    finally:
        keras.config.set_dtype_policy("float32")


def test_vocabularies_in_assets(tmp_path):
    words = tf.constant([["a b"], ["zz c"]])
    text = layers.TextVectorization(output_sequence_length=4)
    text.adapt(["a b c", "b c"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), text, layers.Embedding(9, 3)])
    model.save(tmp_path / "model.keras")
    loaded = safepoint.load_model(tmp_path / "model.keras")
    assert loaded(words).numpy().tobytes() == model(words).numpy().tobytes()


class KeepsFiles(layers.Layer):
    table = 1
    text = ""

    def save_own_variables(self, store):
        store["table"] = np.array([self.table])

    def load_own_variables(self, store):
        self.table = int(store["table"][0])

    def save_assets(self, folder):
        Path(folder, "text.txt").write_text(self.text)

    def load_assets(self, folder):
        self.text = Path(folder, "text.txt").read_text()

    def call(self, x):
        return x


@pytest.mark.parametrize("name", ["model", "model.keras"])
def test_layers_with_a_way_of_their_own_to_save(name, tmp_path):
    own = KeepsFiles()
    own.table, own.text = 7, "größer"
    model = keras.Sequential([keras.Input((8,)), own, layers.Dense(4), layers.Dense(4)])
    model.layers[1].enable_lora(2)
    model.layers[2].quantize("int8")
    (model.save if name.endswith(".keras") else lambda path: safepoint.save_model(model, path))(tmp_path / name)
    loaded = safepoint.load_model(tmp_path / name, custom_objects={"KeepsFiles": KeepsFiles})
    assert (loaded.layers[0].table, loaded.layers[0].text) == (7, "größer")
    x = np.ones((2, 8), np.float32)
    assert loaded.predict(x, verbose=0).tobytes() == model.predict(x, verbose=0).tobytes()


def test_a_file_name_that_leads_out_of_its_layer_is_not_written(tmp_path):
    path = tmp_path / "model"
    safepoint.save_model(keras.Sequential([keras.Input((8,)), KeepsFiles()]), path)
    good = read_model_file(path)
    (name,) = [name for name in good.tree.leaves if name.endswith("text.txt")]
    evil = name.replace("text.txt", "../../../evil.txt")
    tree = type(good.tree)({**good.load().leaves, evil: b"evil"}, good.tree.skeleton)
    write_model_file(path, tree, structure=good.structure, format="keras")
    with pytest.raises(safepoint.UntrustedError, match="nothing was written"):
        safepoint.load_model(path, custom_objects={"KeepsFiles": KeepsFiles})


def test_a_compiled_model_that_never_trained(tmp_path):
    model = compiled(layers.Dense(4), trained=False)
    model.save(tmp_path / "model.keras")
    loaded = safepoint.load_model(tmp_path / "model.keras")
    assert loaded.compiled
    assert_same(loaded, safepoint.load_model(tmp_path / "model.keras"))


def test_compressed_again_by_another_tool(saved, tmp_path):
    model, path = saved
    _rewrite(path, tmp_path / "model.keras", compression=zipfile.ZIP_DEFLATED)
    assert state_of(safepoint.load_model(tmp_path / "model.keras")) == state_of(model)


def test_a_real_lambda_layer_is_refused_and_never_runs(tmp_path):
    def spied(x):
        raise AssertionError(x)

    spied.__name__ = "<lambda>"
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x, output_shape=(4,))])
    model.layers[0].function = spied
    model.save(tmp_path / "model.keras")
    assert b"__lambda__" in (tmp_path / "model.keras").read_bytes()
    keras.config.enable_unsafe_deserialization()
    try:
        with watched(tmp_path / "model.keras"), pytest.raises(safepoint.UntrustedError, match="Lambda"):
            safepoint.load_model(tmp_path / "model.keras")
    finally:
        keras.src.backend.common.global_state.set_global_attribute("safe_mode_saving", None)


def test_without_h5py_the_error_names_the_extra(saved, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(safepoint.UnsupportedError, match=r"safepoint\[formats\]"):
        safepoint.load_model(saved[1])


# hostile configurations


def _config(path: Path, target: Path, edit) -> Path:
    config = json.loads(zipfile.ZipFile(path).read("config.json"))
    edit(config)
    return _rewrite(path, target, replace={"config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "os", "class_name": "system", "config": {"command": "true"}, "registered_name": "system"},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp"}, "registered_name": None},
        {"class_name": "Lambda", "config": {"function": ["4wEA", None, None]}},
    ],
)
def test_a_hostile_configuration_is_refused_and_nothing_runs(entry, saved, tmp_path):
    target = _config(saved[1], tmp_path / "model.keras", lambda c: c["config"]["layers"].append(entry))
    with watched(target), pytest.raises(safepoint.UntrustedError, match=str(target)):
        safepoint.load_model(target)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"config": 1}'])
def test_a_configuration_that_is_none(text, saved, tmp_path):
    target = _rewrite(saved[1], tmp_path / "model.keras", replace={"config.json": text})
    with pytest.raises(safepoint.CorruptionError):
        safepoint.load_model(target)


def test_weights_of_another_model(saved, tmp_path):
    other = compiled(layers.Dense(41), layers.BatchNormalization())
    other.save(tmp_path / "other.keras")
    weights = zipfile.ZipFile(tmp_path / "other.keras").read(WEIGHTS)
    target = _rewrite(saved[1], tmp_path / "model.keras", replace={WEIGHTS: weights})
    with pytest.raises(safepoint.MismatchError, match="layers/dense/vars/0"):
        safepoint.load_model(target)


# hostile archives


def _rewrite(path: Path, target: Path, *, replace=None, add=(), compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as out:
        for name in source.namelist():
            out.writestr(name, (replace or {}).get(name, source.read(name)))
        for name, content in add:
            out.writestr(name, content)
    return target


def _patched(data: bytes, find: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    position = (data.rindex(find) if last else data.index(find)) + offset
    return data[:position] + value + data[position + len(value) :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "member", ["config.json", "CONFIG.JSON", "../evil", "/etc/evil", "assets/../../evil", "evil.py"]
)
def test_a_member_that_no_keras_file_has(member, saved, tmp_path):
    target = _rewrite(saved[1], tmp_path / "model.keras", add=[(member, b"{}")])
    with pytest.raises(safepoint.CorruptionError, match="member"):
        safepoint.load_model(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.keras"]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
ARCHIVES = {
    "a local header with another name": lambda d: _patched(d, LOCAL, 30, b"X"),
    "a local header with another size": lambda d: _patched(d, LOCAL, 22, b"\x01\x00\x00\x00"),
    "a local header with another method": lambda d: _patched(d, LOCAL, 8, b"\x08"),
    "encryption": lambda d: _patched(_patched(d, LOCAL, 6, b"\x01"), CENTRAL, 8, b"\x01"),
    "two members in one place": lambda d: _patched(d, CENTRAL, 42, b"\x00\x00\x00\x00", last=True),
    "bytes in front": lambda d: b"MZ" + d,
    "bytes behind": lambda d: d + b"evil",
    "a comment": lambda d: _patched(d, END, 20, b"\x04\x00") + b"evil",
    "a second directory": lambda d: d + d[d.index(CENTRAL) :],
    "half of it": lambda d: d[: len(d) // 2],
    "nothing but the start": lambda d: d[:30],
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_that_reads_in_two_ways(what, saved, tmp_path):
    target = tmp_path / "model.keras"
    target.write_bytes(ARCHIVES[what](saved[1].read_bytes()))
    with pytest.raises(safepoint.CorruptionError, match=r"model\.keras"):
        safepoint.load_model(target)


def test_a_flipped_bit_in_any_member_is_found(saved, tmp_path):
    data = saved[1].read_bytes()
    target = tmp_path / "model.keras"
    for info in zipfile.ZipFile(saved[1]).infolist():
        position = info.header_offset + 30 + len(info.filename) + info.file_size // 2
        target.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(safepoint.CorruptionError):
            safepoint.load_model(target)


@pytest.mark.parametrize("member", ["config.json", WEIGHTS])
def test_a_bomb_is_refused_before_it_expands(member, saved, tmp_path):
    target = tmp_path / "model.keras"
    zeros = bytes(64 << 20)
    with zipfile.ZipFile(saved[1]) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            with out.open(name, "w", force_zip64=True) as file:
                for part in [zeros] * 5 if name == member else [source.read(name)]:
                    file.write(part)
    with pytest.raises(safepoint.CorruptionError, match=member):
        safepoint.load_model(target)


# hostile weights


def _external_link(f: h5py.File) -> None:
    f["layers/dense/vars/0"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft_link(f: h5py.File) -> None:
    f["layers/dense/vars/0"] = h5py.SoftLink("/layers/dense/vars/1")


def _external_data(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", (10, 40), "f4", external=[("/etc/passwd", 0, 1600)])


def _virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout((10, 40), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (10, 40))
    f.create_virtual_dataset("layers/dense/vars/0", layout)


def _shape_bomb(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", (2**40,), "f4", chunks=(2**20,), compression="gzip")


def _only_fill_value(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", (10, 40), "f4", fillvalue=3.0)


def _text(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", data=["a", "b"], dtype=h5py.string_dtype())


def _references(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", data=f.ref, dtype=h5py.ref_dtype)


def _cycle(f: h5py.File) -> None:
    f["layers/dense/vars/again"] = f["layers"]


def _foreign_filter(f: h5py.File) -> None:
    f.create_dataset("layers/dense/vars/0", data=np.zeros((10, 40), "f4"), chunks=True, compression="lzf")


def _empty(f: h5py.File) -> None:
    f["layers/dense/vars/0"] = h5py.Empty("f4")


def _named_type(f: h5py.File) -> None:
    f["layers/dense/vars/0"] = np.dtype("f8")


WEIGHT_FILES = [
    _external_link, _soft_link, _external_data, _virtual, _shape_bomb, _only_fill_value, _text, _references, _cycle,
    _foreign_filter, _empty, _named_type,
]  # fmt: skip


@pytest.mark.parametrize("edit", WEIGHT_FILES, ids=lambda f: f.__name__.strip("_"))
def test_weights_that_point_elsewhere_or_are_not_there(edit, saved, tmp_path):
    file = io.BytesIO(zipfile.ZipFile(saved[1]).read(WEIGHTS))
    with h5py.File(file, "r+") as weights:
        del weights["layers/dense/vars/0"]
        edit(weights)
    target = _rewrite(saved[1], tmp_path / "model.keras", replace={WEIGHTS: file.getvalue()})
    with watched(target), pytest.raises(safepoint.CorruptionError, match=r"layers|groups"):
        safepoint.load_model(target)


def test_weights_that_are_no_hdf5(saved, tmp_path):
    for content in (b"", b"\x89HDF\r\n\x1a\n" + struct.pack("<200x"), b"text"):
        target = _rewrite(saved[1], tmp_path / "model.keras", replace={WEIGHTS: content})
        with pytest.raises(safepoint.CorruptionError, match=r"HDF5|expands"):
            safepoint.load_model(target)
