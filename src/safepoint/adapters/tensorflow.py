"""TensorFlow: variables, tensors, `tf.Module`, lookup tables, `tf.random.Generator`, tf.data iterators ↔ state trees.

Exact on resume: `tf.random.Generator`, Keras' seed generators, and eager `tf.random.*` after `tf.random.set_seed`.
Not exact: stateful `tf.random.*` with an operation seed, inside a `tf.function` or a tf.data pipeline (their counters
live in kernels that TensorFlow does not show), and anything random in a program that never set a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import context
from tensorflow.python.ops import gen_dataset_ops, stateful_random_ops

from safepoint.adapters.protocol import Adapter, RandomState, Scope, TensorKind
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, Leaf, Node, StateTree, Tensor, TensorSpec, bytes_of, dtype_name, dtype_of, join_name
from safepoint.tree.leaves import Bytes

OPAQUE = False
_MODULE = "tensorflow.module"
_Trackable = tf.__internal__.tracking.Trackable
_Container = tf.Module | tf.__internal__.tracking.AutoTrackable
_Table = tf.lookup.experimental.MutableHashTable | tf.lookup.experimental.DenseHashTable


def handles(obj: Any) -> bool:
    """Modules, mutable tables, generators and tf.data iterators; variables and tensors wherever plain trees are."""
    return isinstance(obj, _Container | _Table | tf.random.Generator | tf.data.Iterator)


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """The variables of a module by name, those of Keras layers in it included."""
    if not isinstance(obj, _Container) or isinstance(obj, tf.random.Generator):
        return
    for name, part in _parts(obj):
        if isinstance(part, tf.Variable):
            yield name, part
        elif (adapter := _other(part)) is not None:
            yield from ((join_name(name, inner), owner) for inner, owner in adapter.owners(part))


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of `obj`; names of a module's leaves are attribute paths (`layers/0/w`).

    Raises:
        UnsupportedError: a distributed variable, text or handles in one, or an iterator that cannot be saved.
    """
    leaves: dict[str, Leaf] = {}
    inner: dict[str, Node] = {}
    for name, part in _parts(obj):
        if id(part) in scope.separate and part is not obj:
            continue
        adapter = _other(part)
        tree = adapter.to_tree(part, scope) if adapter else StateTree(_leaves(part, name))
        leaves.update((join_name(name, leaf_name), leaf) for leaf_name, leaf in tree.leaves.items())
        if adapter is not None:
            inner[name] = tree.skeleton
    return StateTree(leaves, Branch(_MODULE, tuple(inner), tuple(inner.values())))


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The live state; tables and iterators take saved content of any size.

    Raises:
        MismatchError: a generator of another algorithm was saved, or a table of other types.
    """
    leaves = dict(to_tree(like, scope).leaves)
    for name, part in _parts(like):
        adapter = _other(part)
        if adapter is not None and id(part) not in scope.separate:
            _replace(leaves, name, adapter.template(part, _under(saved, name), scope).leaves)
        elif isinstance(part, _Table | tf.data.Iterator):
            found = _under(saved, name).leaves
            if found:
                _check_table(part, name, found)
                _replace(leaves, name, found)
        elif isinstance(part, tf.random.Generator):
            theirs = saved.leaves.get(join_name(name, "algorithm"), part.algorithm)
            if theirs != part.algorithm:
                raise MismatchError(
                    f"{name or 'the generator'!r}: a generator of another algorithm was saved",
                    expected=part.algorithm,
                    found=theirs,
                )
    return StateTree(leaves, saved.skeleton)


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Assign every saved leaf; tables and iterators take their whole content."""
    for name, part in _parts(like):
        found = _under(tree, name)
        if id(part) in scope.separate and part is not like:
            continue
        if (adapter := _other(part)) is not None:
            adapter.from_tree(found, part, scope)
        elif isinstance(part, tf.data.Iterator):
            _set_iterator(part, found)
        elif isinstance(part, _Table):
            _set_table(part, found)
        else:
            for leaf_name, live in _leaves(part, name).items():
                saved = found.leaves.get(leaf_name)
                if isinstance(live, Tensor) and isinstance(saved, Tensor) and live.write is not None:
                    live.write(saved.read())
    return like


def _parts(root: Any) -> Iterator[tuple[str, Any]]:
    """Attribute path → variable, table, generator, iterator or object of another adapter, each once, sorted by name."""
    seen: set[int] = set()

    def visit(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(obj) in seen:
            return
        if isinstance(obj, tf.Variable | _Table | tf.random.Generator | tf.data.Iterator):
            seen.add(id(obj))
            yield path, obj
        elif isinstance(obj, dict | list | tuple):
            seen.add(id(obj))
            pairs = obj.items() if isinstance(obj, dict) else enumerate(obj)
            for key, child in pairs:
                yield from visit(child, join_name(path, str(key)))
        elif isinstance(obj, _Trackable) and _other(obj) is not None:
            seen.add(id(obj))
            yield path, obj
        elif isinstance(obj, _Container):
            seen.add(id(obj))
            ignored = set(getattr(type(obj), "_TF_MODULE_IGNORED_PROPERTIES", ()))
            for key, child in sorted(vars(obj).items()):
                if not key.startswith("_self_") and key not in ignored:
                    yield from visit(child, join_name(path, key))

    yield from visit(root, "")


def _other(part: Any) -> Adapter | None:
    """The adapter of a Keras layer, model or optimizer inside a module."""
    from safepoint.adapters import find  # late: the table of adapters lists this module

    adapter = find(part) if isinstance(part, _Trackable) and not isinstance(part, tf.Variable) else None
    return None if adapter is None or getattr(adapter, "__name__", "") == __name__ else adapter


def _leaves(part: Any, name: str) -> dict[str, Leaf]:
    if isinstance(part, tf.Variable):
        return {"": _variable_leaf(part, name)}
    if isinstance(part, tf.random.Generator):
        return {"algorithm": int(part.algorithm), "state": _variable_leaf(part.state, name)}
    if isinstance(part, tf.data.Iterator):
        return {"state": _iterator_leaf(part, name)}
    keys, values = _sorted(*part.export())
    return {**_array_leaves("keys", keys), **_array_leaves("values", values)}


def _sorted(keys: Any, values: Any) -> tuple[Any, Any]:
    """A table's content in the order of its keys, so that equal tables are equal bytes."""
    if keys.shape.rank != 1:
        return keys, values
    order = np.argsort(keys.numpy(), kind="stable")
    return tf.gather(keys, order), tf.gather(values, order)


def _variable_leaf(variable: Any, name: str = "") -> Tensor:
    """A live leaf: reads are views of the buffer, which TensorFlow copies before it changes it while a view is held."""
    home = type(variable).__module__
    if "distribute" in home or "dtensor" in home:
        raise UnsupportedError(
            f"{name or variable.name!r} is a {type(variable).__name__}: its values are spread over devices",
            hint="variables of distribution strategies are not supported yet",
        )
    spec = TensorSpec(_shape(variable, name), _dtype(variable, name))

    def write(data: Bytes) -> None:
        variable.assign(data.view(dtype_of(spec.dtype)).reshape(spec.shape))  # TensorFlow copies NumPy memory

    return Tensor(spec, lambda: bytes_of(_view(variable.read_value())), write)


def _tensor_leaf(tensor: Any) -> Tensor:
    return Tensor(TensorSpec(_shape(tensor, ""), _dtype(tensor, "")), lambda: bytes_of(_view(tensor)))


def _view(tensor: Any) -> NDArray[Any]:
    array = np.asarray(tensor._numpy())  # numpy() copies; memoryview knows no bfloat16
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _shape(tensor: Any, name: str) -> tuple[int, ...]:
    if not tensor.shape.is_fully_defined():
        raise UnsupportedError(f"{name or tensor.name!r} has no fixed shape", found=tensor.shape)
    return tuple(int(n) for n in tensor.shape)


def _dtype(tensor: Any, name: str) -> str:
    dtype = tensor.dtype.base_dtype
    if dtype in {tf.string, tf.resource, tf.variant} or dtype.is_quantized:
        raise UnsupportedError(
            f"{name or getattr(tensor, 'name', 'a tensor')!r} holds {dtype.name}",
            expected="numbers or booleans",
            hint="keep text as str values in a dictionary that you track" if dtype == tf.string else None,
        )
    return dtype_name(np.dtype(dtype.as_numpy_dtype))


def _iterator_leaf(iterator: Any, name: str) -> Tensor:
    try:
        state = gen_dataset_ops.serialize_iterator(iterator._iterator_resource, external_state_policy=2)
        data = np.frombuffer(tf.io.serialize_tensor(state)._numpy(), np.uint8)
    except (AttributeError, tf.errors.OpError) as error:
        raise UnsupportedError(
            f"the tf.data iterator {name!r} cannot be saved",
            found=str(error).partition("\n")[0][:300],
            hint="pipelines over Python generators or py_function have state that TensorFlow does not know",
        ) from error
    return Tensor.of_bytes(data, TensorSpec(data.shape, "uint8"))


def _set_iterator(iterator: Any, tree: StateTree) -> None:
    saved = tree.leaves.get("state")
    if isinstance(saved, Tensor):
        state = tf.io.parse_tensor(saved.read().tobytes(), tf.variant)
        gen_dataset_ops.deserialize_iterator(iterator._iterator_resource, state)


def _array_leaves(name: str, tensor: Any) -> dict[str, Leaf]:
    """A tensor without a live counterpart; text as its bytes and their lengths."""
    if tensor.dtype != tf.string:
        return {name: Tensor.of(np.asarray(tensor.numpy()), live=False)}
    texts = [bytes(text) for text in tensor.numpy().reshape(-1)]
    lengths = np.array([len(text) for text in texts], np.int64).reshape(tuple(tensor.shape))
    data = np.frombuffer(b"".join(texts), np.uint8)
    return {f"{name}/text": Tensor.of(data, live=False), f"{name}/lengths": Tensor.of(lengths, live=False)}


def _array_of(name: str, tree: StateTree) -> NDArray[Any] | None:
    plain, data, lengths = (tree.leaves.get(key) for key in (name, f"{name}/text", f"{name}/lengths"))
    if isinstance(plain, Tensor):
        return plain.numpy().copy()
    if not isinstance(data, Tensor) or not isinstance(lengths, Tensor):
        return None
    ends = np.cumsum(lengths.numpy().reshape(-1))
    whole = data.read().tobytes()
    texts = [whole[end - length : end] for end, length in zip(ends, lengths.numpy().reshape(-1), strict=True)]
    return np.array(texts, dtype=object).reshape(lengths.spec.shape)


def _check_table(table: Any, name: str, found: Mapping[str, Leaf]) -> None:
    if isinstance(table, tf.data.Iterator):
        return
    live = _leaves(table, name)
    kinds = [{key: x.spec.dtype for key, x in leaves.items() if isinstance(x, Tensor)} for leaves in (live, found)]
    if kinds[0] != kinds[1]:
        raise MismatchError(f"{name or 'the table'!r} has other types", expected=kinds[0], found=kinds[1])


def _set_table(table: Any, tree: StateTree) -> None:
    keys, values = _array_of("keys", tree), _array_of("values", tree)
    if keys is not None and values is not None:
        table.remove(table.export()[0])
        if len(keys):
            table.insert(tf.constant(keys, table.key_dtype), tf.constant(values, table.value_dtype))


def _under(tree: StateTree, name: str) -> StateTree:
    """What a tree has under a name, with the skeleton of the object there."""
    prefix = f"{name}/" if name else ""
    leaves = {n[len(prefix) :]: leaf for n, leaf in tree.leaves.items() if n.startswith(prefix)}
    if name and name in tree.leaves:
        leaves[""] = tree.leaves[name]
    node = tree.skeleton
    if isinstance(node, Branch) and node.kind == _MODULE and name in node.keys:
        return StateTree(leaves, node.children[node.keys.index(name)])
    return StateTree(leaves)


def _replace(leaves: dict[str, Leaf], name: str, news: Mapping[str, Leaf]) -> None:
    prefix = f"{name}/" if name else ""
    for old in [old for old in leaves if old.startswith(prefix)]:
        del leaves[old]
    leaves.update((join_name(name, new), leaf) for new, leaf in news.items())


def _capture_random() -> StateTree:
    current = context.context()
    leaves: dict[str, Leaf] = {"seed": None if current._seed is None else int(np.array(current._seed))}
    if current._seed is not None:
        version, words, gauss = current._rng.getstate()
        leaves |= {"version": version, "words": Tensor.of(np.array(words, np.uint32), live=False), "gauss": gauss}
    if stateful_random_ops.global_generator is not None:
        generator = _leaves(stateful_random_ops.global_generator, "the global generator")
        leaves |= {f"generator/{name}": leaf for name, leaf in generator.items()}
    return StateTree(leaves)


def _restore_random(tree: StateTree) -> None:
    current, words, state = context.context(), tree.leaves.get("words"), tree.leaves.get("generator/state")
    current._set_global_seed(tree.leaves.get("seed"))
    if isinstance(words, Tensor):
        current._rng.setstate((tree.leaves["version"], tuple(words.numpy().tolist()), tree.leaves["gauss"]))
    else:
        current._rng = None
    if not isinstance(state, Tensor):
        return
    live = stateful_random_ops.global_generator
    algorithm = tree.leaves["generator/algorithm"]
    if live is not None and live.algorithm == algorithm:
        live.state.assign(state.numpy())  # in place: compiled functions hold it
    else:
        tf.random.set_global_generator(tf.random.Generator.from_state(state.numpy().copy(), alg=algorithm))


TENSOR_KINDS = (
    TensorKind(
        "tensorflow",
        lambda obj: isinstance(obj, tf.Variable),
        _variable_leaf,
        lambda leaf: tf.Variable(leaf.numpy().copy()),
    ),
    TensorKind(
        "tensorflow.tensor",
        lambda obj: isinstance(obj, tf.Tensor) and hasattr(obj, "numpy"),
        _tensor_leaf,
        lambda leaf: tf.constant(leaf.numpy().copy()),
        immutable=True,
    ),
)
RANDOM_STATES = (RandomState("tensorflow", _capture_random, _restore_random),)
