"""Constructors without their side effects: no initial values drawn, no random state moved, no memory beyond reason.

Invariant: the program's random generators are after `constructing` what they were before.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from safepoint.adapters.torch.whole_model import hugging_face
from safepoint.errors import CorruptionError

# What fills a parameter in place, and would be overwritten by the file: drawing is most of a constructor's time.
_FILLS = frozenset(
    {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "constant_"}
    | {"xavier_normal_", "zeros_", "ones_", "orthogonal_", "eye_", "dirac_", "sparse_", "exponential_", "log_normal_"}
    | {"fill_", "zero_", "random_", "bernoulli_", "cauchy_", "geometric_", "copy_"}
)
_MAKES = frozenset({"empty", "zeros", "ones", "full", "rand", "randn", "randint", "eye", "arange", "linspace"})
_DATA = torch.Tensor.data.__get__
_COPIES = frozenset({"clone", "__deepcopy__"})
# Masks and tables that a constructor computes and no file holds; what it makes and throws away.
_ALLOWANCE = 1 << 30
_TIMES = 4
_MOST_TENSORS = 100_000


@contextmanager
def constructing(state_bytes: int, where: str) -> Iterator[None]:
    """While constructors run, parameters keep whatever their memory held, and few more tensors are made than are saved.

    Raises:
        CorruptionError: a constructor asks for more tensors than the file can fill.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 — the program's own generator
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.device("cpu"),  # whatever the program's default is
            _Uninitialised(state_bytes, where),
            warnings.catch_warnings(),
            hugging_face.offline(),
        ):
            warnings.simplefilter("ignore")  # that initial values are left out, or arguments are odd: both were saved
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@final
class _Uninitialised(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, state_bytes: int, where: str) -> None:
        super().__init__()
        self._most_elements = _TIMES * state_bytes + _ALLOWANCE  # at least a byte each
        self._most_tensors = _MOST_TENSORS + state_bytes // 64
        self._elements = 0
        self._tensors = 0
        self._where = where
        self._data: torch.Tensor | None = None  # what was last taken out of a parameter

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        filled = args[0] if args else kwargs.get("tensor")  # `torch.nn.init` hands it over by its name
        if name in _FILLS and isinstance(filled, torch.nn.Parameter):
            return filled
        if name in _MAKES:
            self._count(name, _num_elements(name, args, kwargs))
        elif name in _COPIES and args:
            self._count(name, args[0].numel())
            if args[0] is self._data and kwargs.get("memory_format") is torch.preserve_format:
                return torch.empty_like(args[0])  # a parameter's `__deepcopy__`: the file fills the copy as well
        result = function(*args, **kwargs)
        if function == _DATA and isinstance(args[0], torch.nn.Parameter):
            self._data = result
        return result

    def _count(self, name: str, elements: int) -> None:
        """Before memory is asked for: `torch.empty(10**12)` may be granted, and fill the machine later."""
        self._elements += elements
        self._tensors += 1
        if self._elements > self._most_elements or self._tensors > self._most_tensors:
            raise CorruptionError(
                f"the constructors of {self._where} ask for more than the file can fill",
                file=self._where,
                expected=f"at most {self._most_elements:,} elements in {self._most_tensors:,} tensors",
                found=f"{self._elements:,} in {self._tensors:,}, the last by {name}",
            )


def _num_elements(name: str, args: tuple[Any, ...], kwargs: Any) -> int:
    """Of the tensor that a call is about to make, from above."""
    given = kwargs.get("size", args)
    flat = [n for size in given for n in (size if isinstance(size, list | tuple) else (size,))]
    numbers = [int(n) for n in flat if isinstance(n, int | float) and math.isfinite(n)]
    if name in {"arange", "linspace"}:
        return max((abs(n) for n in numbers), default=0)
    return math.prod(n for n in numbers if n > 0)
