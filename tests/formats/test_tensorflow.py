"""TensorFlow's checkpoints and SavedModels, each value compared with what TensorFlow reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tests.formats.comparing import assert_same, read_apart

import safepoint

DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128",
]  # fmt: skip


def expected_of(prefix: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(prefix)
    found = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    numbers = {name: np.asarray(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value.dtype.kind not in "OS"}


def test_a_checkpoint_with_optimizer_slots_and_every_dtype(tmp_path: Path) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(3)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    holder = tf.Module()
    holder.all = {dtype: tf.Variable(tf.cast([0, 1, 2], dtype)) for dtype in DTYPES}
    holder.large = tf.Variable(tf.random.normal((300, 700)))
    holder.texts = tf.Variable(["a", "größe"])
    holder.text = tf.Variable("one")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, holder=holder)
    prefix = checkpoint.save(tmp_path / "run" / "ck")
    expected = expected_of(prefix)
    assert len(expected) > 20
    for path in (prefix, tmp_path / "run", f"{prefix}.index"):
        with safepoint.open(path) as tensors:
            assert (tensors.kind, tensors.framework) == ("tensorflow", "TensorFlow")
            assert_same(tensors, expected)
            plain = tensors.plain
    assert plain["holder/texts/.ATTRIBUTES/VARIABLE_VALUE/1"] == "größe".encode()
    assert plain["holder/text/.ATTRIBUTES/VARIABLE_VALUE"] == b"one"
    apart = read_apart(Path(prefix))[prefix]
    assert apart.keys() == expected.keys()


@pytest.mark.parametrize("axis", [0, 1])
def test_partitioned_variables_are_put_together(axis: int, tmp_path: Path) -> None:
    with tf.Graph().as_default():
        compat = tf.compat.v1
        part = compat.get_variable(
            "part", (300, 70), partitioner=compat.fixed_size_partitioner(4, axis=axis),
            initializer=compat.random_uniform_initializer(),
        )  # fmt: skip
        saver = compat.train.Saver()
        with compat.Session() as session:
            session.run(compat.global_variables_initializer())
            prefix = saver.save(session, str(tmp_path / "model.ckpt"), global_step=17)
            whole = np.concatenate([session.run(piece) for piece in part], axis)
    with safepoint.open(tmp_path) as tensors:
        assert tensors.location == prefix
        assert np.array_equal(tensors["part"].numpy(), whole)
        assert np.array_equal(tensors["part"][250:, -3:], whole[250:, -3:])


def test_a_saved_model_is_its_variables(tmp_path: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable(tf.random.normal((5, 7)))
    module.call = tf.function(lambda x: x @ module.v, input_signature=[tf.TensorSpec((None, 5))])
    tf.saved_model.save(module, tmp_path / "sm", signatures={"serving_default": module.call})
    with safepoint.open(tmp_path / "sm") as tensors:
        assert tensors.kind == "saved_model"
        assert_same(tensors, expected_of(str(tmp_path / "sm" / "variables" / "variables")))
        assert tensors.metadata["tags"] == ["serve"]
        assert tensors.metadata["tensorflow"] == tf.__version__
        assert "serving_default" in tensors.metadata["signatures"]


def test_damage_in_a_shard_is_found(tmp_path: Path) -> None:
    holder = tf.Module()
    holder.v = tf.Variable(tf.range(1000.0))
    prefix = tf.train.Checkpoint(holder=holder).save(tmp_path / "ck")
    shard = Path(f"{prefix}.data-00000-of-00001")
    data = bytearray(shard.read_bytes())
    data[data.index(np.float32(900).tobytes() + np.float32(901).tobytes())] ^= 4
    shard.write_bytes(data)
    with safepoint.open(prefix) as tensors:
        name = next(iter(tensors))
        assert tensors[name][:2].tolist() == [0, 1]
        with pytest.raises(safepoint.CorruptionError, match="is damaged"):
            tensors[name].numpy()
    shard.unlink()
    with pytest.raises(safepoint.NotFoundError, match="missing"):
        safepoint.open(prefix)
