"""Saving here, loading in another process, and comparing models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import safepoint
from safepoint.codec import build_header, digest


def there_and_back(model: Any, tmp_path: Path, *, init: Any = None, **options: Any) -> Any:
    safepoint.save_model(model, tmp_path / "model", init=init)
    return safepoint.load_model(tmp_path / "model", **options)


def assert_same_state(ours: Any, theirs: Any) -> None:
    """Every parameter and buffer of `theirs` is `ours`, to the bit, in name, order, dtype and flags."""
    for what in ("named_parameters", "named_buffers"):
        left = dict(getattr(ours, what)(remove_duplicate=False))
        right = dict(getattr(theirs, what)(remove_duplicate=False))
        assert list(left) == list(right)
        for name, tensor in left.items():
            other = right[name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
            assert tensor.requires_grad == other.requires_grad, name
            assert type(tensor) is type(other), name
            same = torch.equal(_bits(tensor), _bits(other))
            assert same, name
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    modes = [(name, module.training) for name, module in ours.named_modules()]
    assert modes == [(name, module.training) for name, module in theirs.named_modules()]


def _bits(tensor: Any) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def in_new_process(code: str, *arguments: object) -> str:
    """What a program prints; fails with what it says if it fails."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: more threads add up in another order
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a model file's document as no writer of ours would, and give it the digest that it needs."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    text = change(header.pop("__metadata__")["safepoint"])
    metadata = {"format": "pt", "safepoint": text, "safepoint.digest": digest(text.encode())}
    start = build_header([], metadata)[8:].rstrip(b" ")[:-1]
    rest = json.dumps(header).encode()[1:]
    both = start + (b"," if header else b"") + rest
    both = both.ljust(-(-len(both) // 8) * 8)
    path.write_bytes(len(both).to_bytes(8, "little") + both + raw[end:])
