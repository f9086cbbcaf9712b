"""One JAX array or PRNG key ↔ one tensor leaf, exactly: dtype, weak type, key implementation, sharding.

Invariant: JAX's silent conversions (64-bit types without `jax_enable_x64`) are errors here, never other values.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Tensor, TensorSpec, bytes_of, dtype_name, dtype_of
from safepoint.tree.leaves import Bytes

ARRAY = "jax"
WEAK = "jax.weak"
_KEY = "jax.key."
_ALIGNMENT = 64  # what XLA's kernels ask of shared memory; less is copied again
X64_HINT = 'jax.config.update("jax_enable_x64", True), before any array is made, lets JAX have 64-bit types'


def is_key(array: Any) -> bool:
    """Whether `array` (or its abstract form) is a typed PRNG key."""
    dtype = array.dtype  # NumPy's own for all but keys, which is told in a tenth of the time
    return not isinstance(dtype, np.dtype) and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def kind_of_array(array: Any) -> str:
    """The skeleton's word for a JAX array: `jax`, `jax.weak`, or `jax.key.` with the name of its implementation."""
    if is_key(array):
        abstract = not isinstance(array, jax.Array)  # has a dtype only, and that no public way to its implementation
        return f"{_KEY}{array.dtype._impl.name if abstract else jax.random.key_impl(array)}"
    return WEAK if getattr(array, "weak_type", False) else ARRAY


def is_deleted(array: Any) -> bool:
    """Whether the buffer is gone: given to a jitted function with `donate_argnums`, or deleted."""
    return isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and array.is_deleted()


def to_leaf(array: Any) -> Tensor:
    """The live leaf of an array, a key (as its key data) or a `jax.ShapeDtypeStruct` (which cannot be read).

    Raises:
        UnsupportedError: the array spans several processes, is being traced, or has a dtype that cannot be kept.
    """
    if isinstance(array, jax.core.Tracer):
        raise UnsupportedError("a tracer has no content", hint="save outside of jit, grad and vmap")
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise UnsupportedError(
            "a JAX array that spans several processes is not captured by this version",
            expected="arrays whose shards are all on devices of this process",
            found=array.sharding,
        )
    return Tensor(_spec(array), lambda: _read(array), frozen=True)


def to_plain_leaf(array: Any) -> Tensor:
    """`to_leaf` where no template says what a key is.

    Raises:
        UnsupportedError: it is a typed key, or as `to_leaf`.
    """
    if is_key(array):
        raise UnsupportedError(
            "a typed PRNG key inside another object's state", hint="keep jax.random.key_data(key) there instead"
        )
    return to_leaf(array)


def build(leaf: Tensor, like: Any = None, kind: str = "") -> Any:
    """A new array with the bytes of `leaf`, copied, where `like` is: its sharding, its key implementation.

    Args:
        leaf: what was saved.
        like: the live array, or `jax.ShapeDtypeStruct`; None for an array on the default device.
        kind: the skeleton's word for what was saved; where it has none, `like` decides about weak types.

    Raises:
        UnsupportedError: JAX would turn 64-bit values into 32-bit ones.
    """
    check_width(leaf.spec)
    # An array that was never put anywhere stays free to go where it is used.
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    host = _own(leaf)
    if like is not None and is_key(like):
        array = jax.random.wrap_key_data(jax.device_put(host), impl=kind_of_array(like).removeprefix(_KEY))
        return array if sharding is None else jax.device_put(array, sharding)
    array = jax.device_put(host, sharding)
    if kind == WEAK or (not kind and getattr(like, "weak_type", False)):
        return jax.lax.convert_element_type_p.bind(array, new_dtype=array.dtype, weak_type=True, sharding=None)
    return array


def check_width(spec: TensorSpec) -> None:
    """Refuse a dtype that JAX, as it is configured, would silently narrow.

    Raises:
        UnsupportedError: it would; names `jax_enable_x64`.
    """
    wanted = dtype_of(spec.dtype)
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise UnsupportedError(
            f"JAX would turn {spec.dtype} into {jax.dtypes.canonicalize_dtype(wanted)}: jax_enable_x64 is off",
            expected=spec,
            hint=X64_HINT,
        )


def check_kind(kind: str, like: Any) -> None:
    """Refuse a key for an array, an array for a key, and a key of another implementation.

    Raises:
        MismatchError: it is one of these.
    """
    live = kind_of_array(like) if isinstance(like, jax.Array | jax.ShapeDtypeStruct) else ARRAY
    if kind and live != kind and (live.startswith(_KEY) or kind.startswith(_KEY)):
        raise MismatchError("not the same kind of PRNG key", expected=describe_kind(live), found=describe_kind(kind))


def describe_kind(kind: str) -> str:
    """A skeleton's word, in a reader's."""
    return f"a PRNG key of {kind.removeprefix(_KEY)}" if kind.startswith(_KEY) else "an array"


def _own(leaf: Tensor) -> NDArray[Any]:
    """A copy that nobody else writes to, where XLA's CPU client can use it as it is.

    `device_put` keeps reading from what it is given, whatever `may_alias` says, and the caller reuses the leaf's bytes.
    """
    data = leaf.read()
    memory = np.empty(len(data) + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    own = memory[start : start + len(data)]
    own[:] = data
    return own.view(dtype_of(leaf.spec.dtype)).reshape(leaf.spec.shape)


def _spec(array: Any) -> TensorSpec:
    if is_key(array):
        data = jax.eval_shape(jax.random.key_data, array)
        return TensorSpec(tuple(data.shape), "uint32")
    return TensorSpec(tuple(array.shape), dtype_name(np.dtype(array.dtype)))


def _host(array: Any) -> NDArray[Any]:
    """The content of an array: on CPU a view, from an accelerator or several devices a copy."""
    if len(array.sharding.device_set) == 1:
        return np.asarray(array)
    # Not np.asarray, which would keep the whole, put together, in the array for as long as that lives.
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = shard.data
    return whole


def _read(array: Any) -> Bytes:
    if isinstance(array, jax.ShapeDtypeStruct):
        raise UnsupportedError("a jax.ShapeDtypeStruct has no content to save", hint="pass the arrays themselves")
    try:
        return bytes_of(_host(jax.random.key_data(array) if is_key(array) else array))
    except RuntimeError as error:
        if not is_deleted(array):
            raise
        raise UnsupportedError("an array was donated or deleted while it was being saved", found=error) from error
