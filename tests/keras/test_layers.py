from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from tests.keras.trees import X, Y, load, same, save, sequential, train

from safepoint.adapters import keras as adapter
from safepoint.adapters.protocol import Scope
from safepoint.errors import UnsupportedError
from safepoint.tree import Tensor

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
]  # fmt: skip


class Holder(keras.layers.Layer):
    def __init__(self, dtype: str, shape=(3, 2), fill: int = 0) -> None:
        super().__init__()
        self.held = keras.Variable(np.full(shape, fill), dtype=dtype, trainable=False)
        self.built = True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, shape):
    one, two = Holder(dtype, shape, 1), Holder(dtype, shape, 0)
    tree = save(one)
    leaf = tree.leaves["vars/0"]
    assert isinstance(leaf, Tensor)
    assert (leaf.spec.dtype, leaf.spec.shape) == (dtype, shape)
    load(tree, two)
    assert same(save(two), tree)


def test_reads_are_views_and_writes_copy():
    layer = Holder("float32", (1024,), 3)
    leaf = adapter.to_tree(layer, Scope()).leaves["vars/0"]
    assert isinstance(leaf, Tensor)
    assert leaf.read().ctypes.data == leaf.read().ctypes.data
    assert leaf.write is not None
    data = np.full(1024, 7, np.float32).view(np.uint8)
    leaf.write(data)
    data[:] = 0
    assert (np.asarray(layer.held) == 7).all()


class Doubled(keras.layers.Layer):
    """Keeps its own books: what it stores is not what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.total = keras.Variable(np.ones(3, "float32"), trainable=False)
        self.refuses = False
        self.built = True

    def call(self, x):
        return x

    def save_own_variables(self, store):
        store["doubled"] = np.asarray(self.total) * 2

    def load_own_variables(self, store):
        if self.refuses:
            raise ValueError("no")
        self.total.assign(store["doubled"] / 2)


def test_a_layer_that_stores_by_itself_is_asked_both_ways():
    one, two = Doubled(), Doubled()
    one.total.assign([1, 2, 3])
    tree = save(one)
    assert list(tree.leaves) == ["vars/doubled"]
    load(tree, two)
    assert np.asarray(two.total).tolist() == [1, 2, 3]


def test_a_layer_that_refuses_leaves_everything_as_it_was():
    def make():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), Doubled(), Doubled()])
        model.layers[1].total.assign([5, 5, 5])
        return model

    one, two = make(), make()
    two.layers[1].total.assign([1, 1, 1])
    two.layers[2].refuses = True
    before = save(two)
    with pytest.raises(UnsupportedError, match="refused its saved state"):
        load(save(one), two)
    assert same(save(two), before)


def test_a_layer_that_stores_anything_but_arrays_is_refused():
    class Odd(Doubled):
        def save_own_variables(self, store):
            store["text"] = np.array(["a"])

    with pytest.raises(UnsupportedError):
        save(Odd())


class Filed(keras.layers.Layer):
    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text
        self.built = True

    def call(self, x):
        return x

    def save_assets(self, folder):
        Path(folder, "notes.txt").write_text(self.text)

    def load_assets(self, folder):
        self.text = Path(folder, "notes.txt").read_text()


def test_files_of_custom_layers_are_values():
    one, two = Filed("häßlich\n"), Filed()
    tree = save(one)
    assert tree.leaves == {"assets/notes.txt": "häßlich\n".encode()}
    load(tree, two)
    assert two.text == one.text


def test_a_shared_variable_is_one_variable_under_its_names():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(5, 4)
            self.again = self.embedding
            self.out = keras.layers.Dense(2)

        def call(self, x):
            return self.out(self.again(x))

    model = Tied()
    model(np.array([[1, 2]]))
    assert list(save(model).leaves) == ["again/vars/0", "layers/dense/vars/0", "layers/dense/vars/1"]


def test_lora_goes_on_from_the_variables_themselves():
    def make():
        model = sequential(None)
        model.layers[0].enable_lora(2)
        model.compile("adam", "mse")
        return model

    model = make()
    model.fit(X, Y, verbose=0)
    names = [name for name in save(model).leaves if name.startswith("layers/dense/")]
    assert names == [f"layers/dense/vars/{key}" for key in ("0", "1", "lora_kernel_a", "lora_kernel_b")]
    again = make()
    load(save(model), again)
    assert train(model) == train(again)
    assert same(save(model), save(again))


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_layers_come_back(mode):
    def make():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        for layer in model.layers:
            layer.quantize(mode)
        return model

    one, two = make(), make()
    load(save(one), two)
    assert same(save(one), save(two))
    assert (one.predict(X, verbose=0) == two.predict(X, verbose=0)).all()


def test_metrics_of_a_model_are_no_state_but_a_tracked_metric_is():
    model = sequential()
    model.compile("adam", "mse", metrics=["mae"])
    model.train_on_batch(X, Y)
    assert not [name for name in save(model).leaves if "mean" in name or "metric" in name or "total" in name]
    one, two = keras.metrics.Mean(), keras.metrics.Mean()
    one.update_state([1.0, 4.0])
    load(save(one), two)
    assert float(two.result()) == 2.5


def test_seed_generators_go_on():
    one, two = keras.random.SeedGenerator(3), keras.random.SeedGenerator(4)
    keras.random.normal((2,), seed=one)
    load(save(one), two)
    assert (np.asarray(keras.random.normal((2,), seed=one)) == np.asarray(keras.random.normal((2,), seed=two))).all()
    many = keras.layers.Pipeline([keras.layers.GaussianNoise(0.1, seed=1), keras.layers.RandomFlip(seed=2)])
    assert [n for n in save(many).leaves if n.endswith("/state")] == [
        "layers/gaussian_noise/seed_generator/state",
        "layers/random_flip/generator/state",
    ]


def test_counters_of_another_width_are_taken():
    model = sequential()
    model.train_on_batch(X, Y)
    tree = save(model)
    small = np.array(np.asarray(tree.leaves["optimizer/iterations"].numpy()), np.int32)
    tree.leaves["optimizer/iterations"] = Tensor.of(small)
    other = sequential()
    load(tree, other)
    assert int(other.optimizer.iterations) == 1


def test_variables_in_plain_trees():
    from safepoint.adapters import find, plain

    state = {"w": keras.Variable([1.0, 2.0]), "n": 3}
    assert find(state) is plain
    tree = plain.to_tree(state, Scope())
    tree = tree.map_tensors(lambda _, t: Tensor.of_bytes(t.read().copy(), t.spec))
    variable = state["w"]
    variable.assign([0.0, 0.0])
    plain.from_tree(tree, state, Scope())
    assert state["w"] is variable
    assert np.asarray(variable).tolist() == [1.0, 2.0]


class OwnBooks(keras.layers.Layer):
    """The example of Keras' documentation: a store of its own, and a weight that is trained."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return x @ self.kernel

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["note"] = np.array([1.0])

    def load_own_variables(self, store):
        self.kernel.assign(store["0"])


def test_an_optimizer_knows_the_owners_in_a_store_of_its_own():
    def make():
        model = keras.Sequential([keras.Input((4,)), OwnBooks()])
        model.compile("adam", "mse")
        return model

    one, two = make(), make()
    train(one)
    tree = save(one)
    assert "optimizer/layers/own_books/vars/0/momentum" in tree.leaves
    load(tree, two)
    assert train(one) == train(two)
    assert same(save(one), save(two))


def test_variables_of_tensorflow_itself_are_kept():
    import tensorflow as tf

    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.steps = tf.Variable(0)
            self.more = [tf.Variable([1.0]), 3]

        def call(self, x):
            return self.dense(x)

    one, two = Counting(), Counting()
    one(X)
    two(X)
    one.steps.assign(7)
    one.more[0].assign([2.0])
    tree = save(one)
    assert [name for name in tree.leaves if "vars" not in name] == ["more/0", "steps"]
    load(tree, two)
    assert int(two.steps) == 7
    assert float(two.more[0][0]) == 2
