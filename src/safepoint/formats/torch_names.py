"""Names in PyTorch's pickles that stand for tensors: storages, and views of them, checked before anything is read.

Source: `torch/_utils.py` (`_rebuild_tensor_v2` and its kin), `torch/storage.py`, `torch/_tensor.py` of PyTorch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError
from safepoint.formats.contents import checked_shape
from safepoint.formats.pickles import Build, Global
from safepoint.formats.plain_names import inert_builtin, plain_names
from safepoint.limits import MAX_DIMENSION
from safepoint.tree import DTYPES, Tensor, TensorSpec, dtype_of
from safepoint.tree.leaves import Bytes

_MAX_EXPANDED_BYTES = 64 << 20
_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_PLAIN_TENSORS = {
    Global("torch", "Tensor"), Global("torch.nn.parameter", "Parameter"), Global("torch.nn.parameter", "Buffer"),
}  # fmt: skip
_OTHERS = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_qtensor": "quantized", "_rebuild_nested_tensor": "nested",
    "_rebuild_wrapper_subclass": "of a wrapper class", "_rebuild_meta_tensor_no_storage": "on the meta device",
    "_rebuild_sparse_csr_tensor": "sparse", "_rebuild_device_tensor_from_numpy": "of another device",
}  # fmt: skip

ReadStorage = Callable[[int, int, bool], Bytes]
"""(start, stop, whole) → bytes of a storage; verified where `whole` and the file has a checksum."""


@final
@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as the file has it.

    Attributes:
        dtype: of its elements; of an untyped one, bytes.
        num_bytes: of all of them.
        read: how they are read.
        file: where it is.
    """

    dtype: str
    num_bytes: int
    read: ReadStorage
    file: str


def storage_dtype(name: object) -> str:
    """The dtype of a class of storages.

    Raises:
        UnsupportedError: quantized storages.
        ValueError: no class of storages.
    """
    if not isinstance(name, Global) or not name.name.endswith("Storage"):
        raise ValueError("no class of storages")
    found = _STORAGES.get(name.name)
    if found is None:
        raise UnsupportedError(f"storages of class {name} are not read", hint="save the dequantized tensor")
    return found


def dtype_of_name(name: object) -> str:
    """Our name of `torch.float32` and its kin.

    Raises:
        ValueError: no dtype.
    """
    found = _dtypes().get(name.name) if isinstance(name, Global) and name.module == "torch" else None
    if found is None:
        raise ValueError(f"{str(name)[:80]} is no dtype")
    return found


def is_inert(name: Global) -> bool:
    """Whether a name stands for itself: dtypes, layouts, classes of storages and of tensors."""
    if inert_builtin(name) or name in _PLAIN_TENSORS:
        return True
    if name.module in {"torch", "torch.storage", "torch.cuda"} and name.name.endswith("Storage"):
        return name.name.replace("Storage", "").isalnum()
    return name.module == "torch" and (name.name in _dtypes() or name.name in {"strided", "sparse_coo"})


def names() -> Mapping[Global, Build]:
    """Name → what is made of it."""
    utils = "torch._utils"
    found = dict(plain_names())
    found |= {
        Global(utils, "_rebuild_tensor"): _tensor_v1,
        Global(utils, "_rebuild_tensor_v2"): _tensor_v2,
        Global(utils, "_rebuild_tensor_v3"): _tensor_v3,
        Global(utils, "_rebuild_parameter"): lambda arguments: _tensor(arguments[0]),
        Global(utils, "_rebuild_parameter_with_state"): lambda arguments: _tensor(arguments[0]),
        Global("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        Global("torch", "Size"): lambda arguments: tuple(*arguments),
        Global("torch", "device"): lambda arguments: ":".join(str(part)[:40] for part in arguments[:2]),
        Global("torch.serialization", "_get_layout"): lambda arguments: str(arguments[0])[:40],
    }
    for name, word in _OTHERS.items():
        found[Global(utils, name)] = _refusal(word)
    return found


def _refusal(word: str) -> Build:
    def build(_arguments: tuple[Any, ...]) -> Any:
        raise UnsupportedError(f"the file has a tensor that is {word}", hint="save it as an ordinary, dense tensor")

    return build


def _dtypes() -> Mapping[str, str]:
    """PyTorch's word for a dtype → ours."""
    words = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
    words |= {"short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32"}
    return words | {name: name for name in DTYPES}


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError("no tensor")
    return value


def _tensor_v1(arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, stride = arguments
    return view_of(storage, None, offset, shape, stride)


def _tensor_v2(arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, stride, _requires_grad, _hooks, *rest = arguments
    _check_metadata(rest)
    return view_of(storage, None, offset, shape, stride)


def _tensor_v3(arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, stride, _requires_grad, _hooks, dtype, *rest = arguments
    _check_metadata(rest)
    if not isinstance(dtype, Global) or dtype.name not in _dtypes():
        raise UnsupportedError(f"dtype {str(dtype)[:80]} is not read", hint="save the tensor in another dtype")
    return view_of(storage, _dtypes()[dtype.name], offset, shape, stride)


def _check_metadata(rest: Sequence[Any]) -> None:
    """Bits that say that the bytes are the conjugate or the negative of the tensor."""
    if any(metadata is not None for metadata in rest):
        raise UnsupportedError("the file has a tensor that is a conjugate or negative view", hint="resolve_conj() it")


def _from_type(arguments: tuple[Any, ...]) -> Any:
    function, kind, inner, _state = arguments
    if kind not in _PLAIN_TENSORS:
        raise UntrustedError(
            f"the file has a tensor of class {str(kind)[:120]}; nothing was run", found=str(kind)[:200]
        )
    build = names().get(function)
    if build is None or build is _from_type:
        raise ValueError("a tensor that is rebuilt in no known way")
    return build(inner)


def view_of(storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any) -> Tensor:
    """A tensor over a storage, in fresh C-order memory when it is read.

    Raises:
        CorruptionError: it reaches outside its storage.
        UnsupportedError: a few bytes expanded to very many.
    """
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without storage")
    sizes = checked_shape(shape, file=storage.file, name="a tensor")
    spec = TensorSpec(sizes, dtype or storage.dtype)
    itemsize = DTYPES[spec.dtype].itemsize
    steps = [step for step in stride if type(step) is int and 0 <= step <= MAX_DIMENSION]
    sound = type(offset) is int and offset >= 0 and len(steps) == len(list(stride)) == len(sizes)
    extent = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=False)) if spec.num_elements else 0
    if not sound or (offset + extent) * itemsize > storage.num_bytes:
        raise CorruptionError(
            f"{storage.file} is damaged: a tensor reaches outside its storage",
            file=storage.file,
            expected=f"inside {storage.num_bytes} bytes",
            found=f"shape {list(sizes)}, stride {str(stride)[:80]}, offset {str(offset)[:40]}",
        )
    if spec.num_bytes > storage.num_bytes + _MAX_EXPANDED_BYTES:
        raise UnsupportedError(
            f"{storage.file} has a tensor of {spec.num_bytes:,} bytes over a storage of {storage.num_bytes:,}",
            hint="save it before it is expanded, or after contiguous()",
        )
    first = offset * itemsize
    if _is_dense(sizes, steps):
        return Tensor(
            spec,
            lambda: storage.read(first, first + spec.num_bytes, True),  # noqa: FBT003
            read_range=lambda start, stop: storage.read(first + start, first + stop, False),  # noqa: FBT003
        )

    def read() -> Bytes:
        data = storage.read(first, first + extent * itemsize, True).view(dtype_of(spec.dtype))  # noqa: FBT003
        # The extent was compared with the storage above: no element lies outside `data`.
        view = np.lib.stride_tricks.as_strided(data, sizes, [step * itemsize for step in steps], writeable=False)
        return np.ascontiguousarray(view).reshape(-1).view(np.uint8)

    return Tensor(spec, read)


def _is_dense(shape: tuple[int, ...], stride: Sequence[int]) -> bool:
    if math.prod(shape) == 0:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
