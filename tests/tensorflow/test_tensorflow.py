from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from safepoint.adapters import find, plain, random_states
from safepoint.adapters import tensorflow as adapter
from safepoint.adapters.protocol import Scope
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor, match

DTYPES = [
    tf.bool, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.float16,
    tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, tf.dtypes.experimental.float8_e4m3fn,
    tf.dtypes.experimental.float8_e5m2, tf.dtypes.experimental.int4, tf.dtypes.experimental.uint4,
]  # fmt: skip


def save(obj: Any, scope: Scope | None = None) -> StateTree:
    tree = find(obj).to_tree(obj, scope or Scope())
    return tree.map_tensors(lambda _, tensor: Tensor.of_bytes(tensor.read().copy(), tensor.spec))


def load(tree: StateTree, obj: Any, scope: Scope | None = None) -> Any:
    scope = scope or Scope()
    error = match(find(obj).template(obj, tree, scope).leaves, tree.leaves).error("the snapshot", cast=False)
    if error is not None:
        raise error
    return find(obj).from_tree(tree, obj, scope)


class Inner(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([[1.0, 2.0]])


class Outer(tf.Module):
    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.layers = [Inner(), Inner()]
        self.by_name = {"b": tf.Variable(fill), "a": [tf.Variable(fill + 1)]}
        self.pair = (tf.Variable(fill + 2), Inner())
        self.same = self.layers[0]
        self.step = 3
        self._hidden = tf.Variable(tf.zeros((2, 0)))


def test_names_are_attribute_paths():
    assert list(save(Outer()).leaves) == [
        "_hidden", "by_name/b", "by_name/a/0", "layers/0/w", "layers/1/w", "pair/0", "pair/1/w",
    ]  # fmt: skip
    assert [name for name, _ in adapter.owners(Outer())][:2] == ["_hidden", "by_name/b"]


def test_a_module_comes_back_in_place():
    one, two = Outer(5.0), Outer(0.0)
    variables = two.variables
    load(save(one), two)
    assert all(old is new for old, new in zip(variables, two.variables, strict=True))
    assert [v.numpy().tolist() for v in one.variables] == [v.numpy().tolist() for v in two.variables]


def test_another_module_is_refused():
    class Other(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable([1.0, 2.0, 3.0])

    other = Other()
    with pytest.raises(MismatchError):
        load(save(Inner()), other)
    assert other.w.numpy().tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, shape):
    ones, zeros = np.ones(shape), np.zeros(shape)
    one, two = (tf.Variable(array.astype(dtype.as_numpy_dtype), dtype=dtype) for array in (ones, zeros))
    tree = save([one])
    leaf = tree.leaves["0"]
    assert isinstance(leaf, Tensor)
    assert leaf.spec.shape == shape
    assert leaf.spec.dtype == dtype.name
    load(tree, [two])
    assert two.dtype == dtype
    assert (two.numpy() == one.numpy()).all()


def test_reads_are_views_that_training_does_not_change():
    variable = tf.Variable(tf.ones((1024,)))
    leaf = adapter.TENSOR_KINDS[0].to_leaf(variable)
    view = leaf.read().view(np.float32)
    assert view.ctypes.data == leaf.read().ctypes.data
    assert not view.flags.writeable
    variable.assign_add(tf.ones((1024,)))
    assert (view == 1).all()
    assert (leaf.numpy() == 2).all()
    data = np.full(1024, 7, np.float32)
    leaf.write(data.view(np.uint8))
    data[:] = 0
    assert (variable.numpy() == 7).all()


def test_variables_are_written_in_place_and_tensors_replaced_in_plain_trees():
    state = {"v": tf.Variable([1.0]), "t": tf.constant([2, 3]), "n": 1}
    variable, tree = state["v"], save(state)
    assert find(state) is plain
    state["v"].assign([0.0])
    state["t"], state["n"] = tf.constant([0, 0]), 9
    load(tree, state)
    assert state["v"] is variable
    assert variable.numpy() == [1]
    assert isinstance(state["t"], tf.Tensor)
    assert state["t"].numpy().tolist() == [2, 3]
    assert state["n"] == 1


def test_a_single_variable():
    one, two = tf.Variable([1, 2]), tf.Variable([0, 0])
    load(save(one), two)
    assert two.numpy().tolist() == [1, 2]


@pytest.mark.parametrize("seeded", [1, 2])
def test_a_generator_goes_on(seeded):
    one, two = tf.random.Generator.from_seed(seeded), tf.random.Generator.from_seed(9)
    one.normal((3,))
    load(save(one), two)
    assert (one.normal((3,)).numpy() == two.normal((3,)).numpy()).all()


def test_a_generator_of_another_algorithm_is_refused():
    with pytest.raises(MismatchError, match="algorithm"):
        load(save(tf.random.Generator.from_seed(1, alg="philox")), tf.random.Generator.from_seed(1, alg="threefry"))


def test_mutable_tables_take_the_whole_content():
    def table(pairs):
        made = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        if pairs:
            made.insert(list(pairs), tf.constant(list(pairs.values()), tf.int64))
        return made

    class Holder(tf.Module):
        def __init__(self, pairs):
            super().__init__()
            self.table = table(pairs)

    one, two = Holder({"a": 1, "": 2, "ü\n\0": 3}), Holder({"x": 7, "a": 9})
    load(save(one), two)
    keys, values = two.table.export()
    found = {bytes(k): int(v) for k, v in zip(keys.numpy(), values.numpy(), strict=True)}
    assert found == {b"a": 1, b"": 2, "ü\n\0".encode(): 3}
    load(save(table({})), two.table)
    assert int(two.table.size()) == 0


def test_a_table_of_other_types_is_refused():
    one = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0)
    two = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
    with pytest.raises(MismatchError, match="other types"):
        load(save(one), two)


def test_a_data_iterator_goes_on_without_a_file():
    data = tf.data.Dataset.range(40).shuffle(20, seed=3).batch(2).prefetch(2).repeat(2)
    one, two = iter(data), iter(data)
    for _ in range(7):
        next(one)
    tree = save(one)
    assert list(tree.leaves) == ["state"]
    rest = [x.numpy().tolist() for x in one]
    load(tree, two)
    assert [x.numpy().tolist() for x in two] == rest


def test_an_iterator_over_a_python_generator_says_why_not():
    data = tf.data.Dataset.from_generator(lambda: iter(range(5)), output_signature=tf.TensorSpec((), tf.int32))
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        save(iter(data))


def test_text_and_distributed_variables_are_refused_by_name():
    class Texts(tf.Module):
        def __init__(self):
            super().__init__()
            self.text = tf.Variable(["a"])

    with pytest.raises(UnsupportedError, match="'text' holds string"):
        save(Texts())
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = Inner()
    with pytest.raises(UnsupportedError, match="spread over devices"):
        save(mirrored)


def test_keras_layers_inside_a_module_are_not_lost():
    import keras

    class Mixed(tf.Module):
        def __init__(self, fill):
            super().__init__()
            self.dense = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(fill))
            self.dense.build((None, 3))
            self.scale = tf.Variable(fill)

    one, two = Mixed(4.0), Mixed(0.0)
    tree = save(one)
    assert list(tree.leaves) == ["dense/vars/0", "dense/vars/1", "scale"]
    assert next(name for name, _ in adapter.owners(one)) == "dense/vars/0"
    load(tree, two)
    assert (np.asarray(two.dense.kernel) == 4).all()
    assert two.scale.numpy() == 4


def test_a_keras_optimizer_over_a_module_is_named_by_owner():
    import keras

    def make():
        module, optimizer = Inner(), keras.optimizers.Adam()
        optimizer.build(module.trainable_variables)
        return module, optimizer

    module, optimizer = make()
    optimizer.apply([tf.ones_like(module.w)])
    scope = Scope({id(owner): f"net/{name}" for name, owner in adapter.owners(module)})
    tree = save(optimizer, scope)
    assert list(tree.leaves) == ["iterations", "learning_rate", "net/w/momentum", "net/w/velocity"]
    other, again = make()
    load(tree, again, Scope({id(owner): f"net/{name}" for name, owner in adapter.owners(other)}))
    assert int(again.iterations) == 1


def test_eager_random_ops_go_on_exactly():
    state = random_states()["tensorflow"]
    tf.random.set_seed(4)
    tf.random.normal((2,))
    tf.random.get_global_generator().normal((2,))
    saved = state.capture().map_tensors(lambda _, t: Tensor.of_bytes(t.read().copy(), t.spec))

    def draw():
        eager = tf.random.normal((2,)).numpy().tolist() + tf.random.shuffle(tf.range(9)).numpy().tolist()
        return eager + tf.random.get_global_generator().normal((2,)).numpy().tolist()

    expected = draw()
    tf.random.set_seed(5)
    draw()
    state.restore(saved)
    assert draw() == expected


def test_a_program_that_set_no_seed_has_no_seed_afterwards():
    from tensorflow.python.eager import context

    state = random_states()["tensorflow"]
    before = context.context()._seed, context.context()._rng
    context.context()._seed = context.context()._rng = None
    saved = state.capture()
    tf.random.set_seed(3)
    state.restore(saved)
    assert context.context()._seed is None
    context.context()._seed, context.context()._rng = before
