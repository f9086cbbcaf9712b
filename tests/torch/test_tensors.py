"""Tensors: every dtype and layout, exactly; what has no bytes of its own is refused by name."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from safepoint.adapters import Scope, plain
from safepoint.adapters.torch import tensors
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import DTYPES, Tensor, TensorSpec

DTYPE_NAMES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
]  # fmt: skip


def random_bytes(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)


def tensor_of(name: str, shape: tuple[int, ...] = (3, 4)) -> Any:
    dtype = getattr(torch, name)
    content = random_bytes(int(np.prod(shape)) * dtype.itemsize)
    if name == "bool":
        content &= 1
    return torch.from_numpy(content).view(dtype).reshape(shape)


def raw(tensor: Any) -> bytes:
    """The logical content by torch itself, element by element."""
    flat = [tensor[index] for index in np.ndindex(*tensor.shape)]
    return b"".join(bytes(x.reshape(1).view(torch.uint8).tolist()) for x in flat)


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_every_dtype_is_kept_bit_for_bit(name: str) -> None:
    tensor = tensor_of(name)
    leaf = tensors.leaf(tensor)
    assert leaf.spec == TensorSpec((3, 4), name)
    assert leaf.read().tobytes() == raw(tensor)
    built = tensors.build(leaf)
    assert built.dtype == tensor.dtype
    assert tensors.leaf(built).read().tobytes() == raw(tensor)


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_every_dtype_is_written_through_a_transposed_view(name: str) -> None:
    target = torch.zeros(4 * 3 * getattr(torch, name).itemsize, dtype=torch.uint8)
    view = target.view(getattr(torch, name)).reshape(4, 3).t()
    source = tensor_of(name)
    leaf = tensors.leaf(view)
    assert leaf.write is not None
    leaf.write(tensors.leaf(source).read())
    assert tensors.leaf(view).read().tobytes() == raw(source)


def test_every_dtype_torch_has_is_kept_or_refused() -> None:
    for name in dir(torch):
        dtype = getattr(torch, name)
        if not isinstance(dtype, torch.dtype):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = torch.empty(2, dtype=dtype)
        if str(dtype).removeprefix("torch.") in DTYPE_NAMES:
            assert tensors.leaf(tensor).spec.dtype in DTYPES
        else:
            with pytest.raises(UnsupportedError, match=str(dtype).removeprefix("torch.")):
                tensors.leaf(tensor)


VIEWS = {
    "contiguous": lambda: torch.randn(3, 4),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.empty(0, 3),
    "empty transposed": lambda: torch.empty(2, 0, 3).transpose(0, 2),
    "transposed": lambda: torch.randn(3, 4).t(),
    "offset": lambda: torch.randn(10)[3:7],
    "strided": lambda: torch.randn(6, 6)[::2, 1::3],
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "conj": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    "neg": lambda: torch.randn(4, dtype=torch.complex64).conj().imag,
    "conj half": lambda: (
        torch.from_numpy(random_bytes(16)).view(torch.float16).nan_to_num().view(torch.complex32).conj()
    ),
    "parameter": lambda: torch.nn.Parameter(torch.randn(3)),
    "non-leaf": lambda: torch.randn(3, requires_grad=True) * 2,
    "unaligned storage": lambda: torch.randn(9)[1:].view(2, 4)[:, 1:],
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_every_view_is_read_and_written(make: Any) -> None:
    torch.manual_seed(0)
    source, target = make(), make()
    expected = source.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    leaf = tensors.leaf(target)
    assert leaf.write is not None
    leaf.write(tensors.leaf(source).read().copy())
    np.testing.assert_array_equal(tensors.leaf(target).read(), expected)
    if target.dtype != torch.complex32:  # torch cannot compare those
        assert torch.equal(target, source)


def test_a_write_to_a_view_leaves_its_neighbours_alone() -> None:
    base = torch.zeros(4, 4)
    leaf = tensors.leaf(base[1:3, ::2])
    assert leaf.write is not None
    leaf.write(np.full(16, 0xFF, np.uint8))
    assert base.isnan().sum() == 4
    assert (base == 0).sum() == 12


def test_a_dense_tensor_is_not_copied() -> None:
    base = torch.randn(100)
    for tensor in (base, base[10:20], base[:0], torch.nn.Parameter(base), base.view(10, 10)[3]):
        leaf = tensors.leaf(tensor)
        assert leaf.memory is not None
        assert leaf.read() is leaf.memory
        if tensor.numel():
            assert leaf.memory.ctypes.data == tensor.data_ptr()


def test_a_read_follows_the_live_tensor() -> None:
    for tensor in (torch.zeros(4), torch.zeros(4, 2).t()):
        leaf = tensors.leaf(tensor)
        tensor.fill_(1)
        assert leaf.read().view(np.float32).tolist() == [1.0] * tensor.numel()


def test_a_view_outlives_its_tensor() -> None:
    data = tensors.leaf(torch.full((1000,), 7.0)).read()
    assert (data.view(np.float32) == 7).all()


def test_an_expanded_view_takes_only_what_it_can_hold() -> None:
    tensor = torch.zeros(1, 2).expand(3, 2)
    leaf = tensors.leaf(tensor)
    assert leaf.write is not None
    leaf.write(np.tile(np.array([1, 2], np.float32), 3).view(np.uint8))
    assert tensor.tolist() == [[1, 2]] * 3
    with pytest.raises(MismatchError, match="share memory"):
        leaf.write(np.arange(6, dtype=np.float32).view(np.uint8))
    assert tensor.tolist() == [[1, 2]] * 3


def test_an_inference_tensor_is_written() -> None:
    with torch.inference_mode():
        tensors_made = [torch.zeros(3), torch.zeros(3, 2).t(), torch.zeros(2, dtype=torch.complex64).conj()]
    for tensor in tensors_made:
        leaf = tensors.leaf(tensor)
        assert leaf.write is not None
        leaf.write(np.full(leaf.spec.num_bytes, 1, np.uint8))
        assert (tensors.leaf(tensor).read() != 0).all()


def test_autograd_notices_a_write() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    leaf = tensors.leaf(weight)
    assert leaf.write is not None
    leaf.write(np.zeros(12, np.uint8))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Meta:
    def __new__(cls) -> Any:
        return torch.empty(3, device="meta")


def freed() -> Any:
    tensor = torch.zeros(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def fake() -> Any:
    from torch._subclasses import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.zeros(3))


def dtensor() -> Any:
    from torch.distributed.tensor import DTensor

    return torch.Tensor._make_wrapper_subclass(DTensor, (3,))


REFUSED = {
    "meta": (Meta, "meta device"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
    "nested": (nested, "nested"),
    "fake": (fake, "FakeTensor"),
    "freed": (freed, "freed"),
    "lazy": (torch.nn.UninitializedParameter, "no shape yet"),
    "sharded": (dtensor, "sharded tensors are refused until the distributed work"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_what_has_no_bytes_of_its_own_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        tensors.leaf(make())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_tensors_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="quantized"):
        tensors.leaf(torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8))


def test_a_refused_tensor_in_a_container_is_named_by_its_path() -> None:
    with pytest.raises(UnsupportedError, match=r"'adapter/2' cannot be saved.*meta"):
        plain.to_tree({"adapter": [1, 2, torch.empty(3, device="meta")]}, Scope())


def test_torch_refuses_a_dtype_it_does_not_have() -> None:
    with pytest.raises(UnsupportedError, match="float8_e3m4"):
        tensors.build(Tensor.of_bytes(np.zeros(2, np.uint8), TensorSpec((2,), "float8_e3m4")))


def test_a_subclass_with_its_own_operators_is_read_as_plain_memory() -> None:
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(func)

    tensor = torch.arange(3.0).as_subclass(Loud)
    leaf = tensors.leaf(tensor)
    assert leaf.read().view(np.float32).tolist() == [0, 1, 2]
    assert leaf.write is not None
    leaf.write(np.zeros(12, np.uint8))
    assert leaf.read().max() == 0


def test_tensors_in_containers_come_back_in_place() -> None:
    live = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.bfloat16), 4]}
    saved = plain.to_tree({"a": torch.ones(3), "b": [torch.ones(2, dtype=torch.bfloat16), 5]}, Scope())
    first = live["a"]
    plain.from_tree(saved, live, Scope())
    assert live["a"] is first
    assert first.tolist() == [1, 1, 1]
    assert live["b"] == [live["b"][0], 5]
    assert live["b"][0].dtype == torch.bfloat16


def test_a_tensor_over_four_gibibytes_is_viewed_whole() -> None:
    size = (1 << 32) + 16
    tensor = torch.empty(size, dtype=torch.uint8)  # never touched: it takes no memory
    leaf = tensors.leaf(tensor)
    assert leaf.memory is not None
    assert len(leaf.memory) == leaf.spec.num_bytes == size
    tensor[-1] = 7
    assert leaf.memory[-1] == 7


def test_a_default_device_changes_nothing() -> None:
    """Any other than the host would do; a snapshot's bytes are always on the host first."""
    with torch.device("meta"):
        dense, view = torch.arange(4.0, device="cpu"), torch.arange(4.0, device="cpu")[::2]
        for tensor in (dense, view):
            leaf = tensors.leaf(tensor)
            assert leaf.write is not None
            built = tensors.build(leaf)
            assert built.device.type == "cpu"
            leaf.write(np.zeros(leaf.spec.num_bytes, np.uint8))
    assert built.tolist() == [0, 2]
    assert dense.tolist() == [0, 0, 0, 0]
