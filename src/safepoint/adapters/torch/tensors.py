"""torch tensors ↔ leaves.

Invariant: a leaf's bytes are the tensor's logical content in C order, whatever its strides, device and conj or neg
bits; a dense CPU tensor is never copied. No torch kernel touches CPU bytes: several dtypes have no copy kernel.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from safepoint.adapters.protocol import TensorKind
from safepoint.adapters.torch.cuda import CudaTransfer, is_on_device
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import DTYPES, Tensor, TensorSpec
from safepoint.tree.leaves import Bytes

# torch's int1..int7 and uint1..uint7 have a name and a size but no defined content: nothing computes with them.
_SHELLS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))
_DTYPES = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name) and name not in _SHELLS}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NUMPY = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32})
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_BITS: dict[int, np.dtype[Any]] = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)} | {16: np.dtype("V16")}


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a torch tensor of any kind, those that `leaf` refuses too."""
    return isinstance(obj, torch.Tensor)


def leaf(tensor: Any) -> Tensor:
    """The live leaf of a tensor: strided, 0-d, empty, expanded, conjugated, on any device.

    Raises:
        UnsupportedError: its bytes are not all here, or are not its content (sharded, sparse, lazy, meta, ...).
    """
    if type(tensor) in _PLAIN and tensor.is_cpu and tensor.dtype in _NUMPY and _is_dense(tensor):  # nearly always
        return _dense_leaf(tensor, TensorSpec(tuple(tensor.shape), _NAMES[tensor.dtype]), _numpy_bytes(tensor))
    refusal = why_not(tensor)
    if refusal is not None:
        raise UnsupportedError(refusal[0], hint=refusal[1])
    with torch._C.DisableTorchFunctionSubclass():
        spec = TensorSpec(tuple(tensor.shape), _NAMES[tensor.dtype])
    memory = dense_bytes(tensor)
    if memory is not None:
        return _dense_leaf(tensor, spec, memory)
    transfer = CudaTransfer(tensor) if is_on_device(tensor) else None
    return Tensor(spec, lambda: _read(tensor), lambda data: _write(tensor, data), transfer=transfer)


def named_leaf(name: str, tensor: Any) -> Tensor:
    """The leaf of a tensor; if it is refused, the message has its name."""
    try:
        return leaf(tensor)
    except UnsupportedError as error:
        raise UnsupportedError(f"{name} cannot be saved: {error.message}", hint=error.hint) from error


def build(leaf: Tensor, device: Any = "cpu") -> Any:
    """A new tensor on `device` with the content of a leaf.

    Raises:
        UnsupportedError: torch has no such dtype.
    """
    if leaf.spec.dtype not in _DTYPES:
        raise UnsupportedError(f"torch has no dtype {leaf.spec.dtype}", hint="restore it into a NumPy array")
    raw = torch.empty(leaf.spec.num_bytes, dtype=torch.uint8, device="cpu")
    np.copyto(raw.numpy(), leaf.read())
    return _typed(raw, _DTYPES[leaf.spec.dtype], leaf.spec.shape).to(device)


def name_of(dtype: Any) -> str:
    """The name of a torch dtype in snapshots.

    Raises:
        UnsupportedError: it has none.
    """
    if dtype not in _NAMES:
        raise UnsupportedError(f"tensors of dtype {dtype} have no defined content", hint="save it as uint8")
    return _NAMES[dtype]


def adopted(leaf: Tensor) -> Any:
    """A tensor over the very memory of a leaf that nobody else uses again: aligned, writable, kept alive by it.

    Raises:
        UnsupportedError: torch has no such dtype.
    """
    if leaf.spec.dtype not in _DTYPES:
        raise UnsupportedError(f"torch has no dtype {leaf.spec.dtype}", hint="load it with another framework")
    data = leaf.read()
    if not data.flags.writeable:
        return build(leaf)
    return _typed(torch.from_numpy(data), _DTYPES[leaf.spec.dtype], leaf.spec.shape)


def dtype_called(name: str) -> Any:
    """The torch dtype of a name in snapshots, or None."""
    return _DTYPES.get(name)


def why_not(tensor: Any, *, meta: bool = False) -> tuple[str, str | None] | None:
    """Why a tensor cannot be captured, and what to do about it; None if it can. Copies nothing, runs no operator.

    Args:
        tensor: to look at.
        meta: being on the meta device is no reason.
    """
    kind = type(tensor).__name__
    with torch._C.DisableTorchFunctionSubclass():
        if torch.nn.parameter.is_lazy(tensor):
            return "it has no shape yet", "run one batch through the model first"
        if "DTensor" in kind or "ShardedTensor" in kind:
            return f"it is a {kind}: sharded tensors are refused until the distributed work", None
        if tensor.is_nested:
            return "nested tensors have no single shape", "keep their values() and offsets() as tensors"
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            return f"{layout} tensors are not strided", "keep it to_dense(), or its indices and values() as tensors"
        if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            inside = "its data and mask" if kind == "MaskedTensor" else "the plain tensors inside it"
            return f"it is a {kind}, whose bytes are its own affair", f"keep {inside} instead"
        if tensor.is_quantized:
            return (
                f"quantized tensors ({tensor.dtype}) are refused",
                "keep int_repr(), scales and zero points as tensors",
            )
        if tensor.dtype not in _NAMES:
            return f"tensors of dtype {tensor.dtype} have no defined content", "save it as uint8"
        if tensor.device.type == "meta":
            if meta:
                return None
            return "it is on the meta device: it has no content", "give it memory first: module.to_empty(device=...)"
        if _is_wrapped(tensor):
            return "it exists only inside a torch.func transformation", "save outside of vmap, grad or jvp"
        if tensor.numel() and tensor.untyped_storage().nbytes() == 0:
            return "its memory has been freed (a sharding wrapper does that)", "save where the full tensor is"
    return None


def dense_bytes(tensor: Any) -> Bytes | None:
    """The memory of a dense C-order CPU tensor as writable `uint8[n]`, or None if it is none such."""
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return None
        if tensor.numel() == 0:
            return np.empty(0, np.uint8)
        if tensor.dtype in _NUMPY:
            return _numpy_bytes(tensor)
        start = tensor.storage_offset() * tensor.itemsize
        return _storage(tensor)[start : start + tensor.numel() * tensor.itemsize]


def _dense_leaf(tensor: Any, spec: TensorSpec, memory: Bytes) -> Tensor:
    return Tensor(spec, lambda: memory, lambda data: _write_dense(tensor, memory, data), memory)


def _is_dense(tensor: Any) -> bool:
    """Whether a plain CPU tensor is just its memory: what `why_not` and `dense_bytes` ask, in a fifth of the time."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not _is_wrapped(tensor)
        and tensor.data_ptr() != 0
    )


def _numpy_bytes(tensor: Any) -> Bytes:
    """The memory of a dense tensor whose dtype NumPy has: half the time that the way over its storage takes."""
    view: Bytes = (tensor.detach() if tensor.requires_grad else tensor).numpy().reshape(-1).view(np.uint8)
    return view


def strided(tensor: Any, storage: Bytes) -> NDArray[Any]:
    """A CPU tensor's elements as an array over the bytes of its storage, or over a copy of them."""
    with torch._C.DisableTorchFunctionSubclass():
        size: int = tensor.itemsize
        strides = tuple(stride * size for stride in tensor.stride())
        start = tensor.storage_offset() * size
        return np.ndarray(tuple(tensor.shape), _BITS[size], storage, start, strides)


def storage_bytes(tensor: Any) -> Bytes | None:
    """All memory that a CPU tensor shares with its views, or None where it is not plain CPU memory."""
    return _storage(tensor) if on_host(tensor) else None


def on_host(tensor: Any) -> bool:
    """Whether a tensor's elements lie as they are in CPU memory, and there are some."""
    with torch._C.DisableTorchFunctionSubclass():
        return bool(tensor.device.type == "cpu" and not tensor.is_conj() and not tensor.is_neg() and tensor.numel())


def overlaps_itself(tensor: Any) -> bool:
    """Whether two elements may share memory (expanded views); False only if none do."""
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.is_contiguous() or tensor.numel() < 2:
            return False
        axes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
        reach = 0
        for stride, size in axes:
            if size > 1 and stride <= reach:
                return True
            reach += stride * (size - 1)
        return False


def _storage(tensor: Any) -> Bytes:
    storage = tensor.untyped_storage()
    alias: Bytes = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage, 0, (storage.nbytes(),), (1,)).numpy()
    return alias


def _read(tensor: Any) -> Bytes:
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        host = tensor.detach().resolve_conj().resolve_neg().cpu()
        dense = dense_bytes(host)
        if dense is not None:
            return dense
        elements = np.ascontiguousarray(strided(host, _storage(host)))
        return elements.reshape(-1).view(np.uint8)


def _write_dense(tensor: Any, memory: Bytes, data: Bytes) -> None:
    np.copyto(memory, data)
    _changed(tensor)


def _write(tensor: Any, data: Bytes) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        storage = storage_bytes(tensor)
        if storage is None:
            _copy_from(tensor, data)
            return
    elements = strided(tensor, storage)
    if overlaps_itself(tensor) and not keeps({"": tensor}, {"": data}):
        raise MismatchError(
            f"a tensor of shape {elements.shape} is a view whose elements share memory, and the snapshot has "
            "different values for them",
            hint="make it contiguous() before restoring",
        )
    np.copyto(elements, data.view(elements.dtype).reshape(elements.shape))
    _changed(tensor)


def _copy_from(tensor: Any, data: Bytes) -> None:
    """Through torch: to another device, or through conj and neg bits."""
    if tensor.numel():
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(_view(data, tensor.dtype, tuple(tensor.shape)))


def keeps(tensors: dict[str, Any], data: dict[str, Bytes]) -> bool:
    """Whether CPU tensors that share a storage can hold `data` all at once; tried on a copy of the storage."""
    first = next(iter(tensors.values()))
    storage = storage_bytes(first)
    assert storage is not None
    copy = storage.copy()
    views = {name: strided(tensor, copy) for name, tensor in tensors.items()}
    wanted = {name: data[name].view(view.dtype).reshape(view.shape) for name, view in views.items()}
    for name, view in views.items():
        np.copyto(view, wanted[name])
    return all(view.tobytes() == wanted[name].tobytes() for name, view in views.items())


def _changed(tensor: Any) -> None:
    """Tell autograd: a backward pass that still needs the old content must fail, not compute nonsense."""
    with torch._C.DisableTorchFunctionSubclass():
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _view(data: Bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
    """`data` as a tensor that aliases it while it is copied from; torch warns of every read-only NumPy array."""
    if not data.flags.c_contiguous or data.ctypes.data % dtype.itemsize:
        data = data.copy()
    alias = (ctypes.c_uint8 * data.nbytes).from_address(data.ctypes.data)
    alias._keep = data  # type: ignore[attr-defined]  # a ctypes array owns nothing
    return _typed(torch.frombuffer(alias, dtype=torch.uint8), dtype, shape)


def _typed(raw: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A `uint8` tensor as another dtype; `torch.empty(dtype=complex32)` would warn."""
    return raw.view(dtype).reshape(shape)


KIND = TensorKind("torch", is_tensor, leaf, build)
