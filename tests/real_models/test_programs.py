"""Networks that packages ship as programs: weights as the programs' own libraries read them; what runs is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper
from safetensors.numpy import load_file

import safepoint


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, "requirements/models.txt installs it"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def weights_of(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Initializers, and large constants, of a graph and of those in its nodes."""
    yield from ((prefix + item.name, numpy_helper.to_array(item)) for item in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.ByteSize() > 1024:
                yield prefix + node.output[0], numpy_helper.to_array(attribute.t)
            elif attribute.HasField("g"):
                yield from weights_of(attribute.g, f"{prefix}{node.name or node.output[0]}/{attribute.name}/")


@pytest.mark.parametrize(
    ("package", "file", "count"),
    [
        ("silero_vad", "data/silero_vad.onnx", 18),  # all of them in the branches of an If
        ("silero_vad", "data/silero_vad_16k_op15.onnx", 15),
        ("silero_vad", "data/silero_vad_half.onnx", 15),
        ("basic_pitch", "saved_models/icassp_2022/nmp.onnx", 102),
    ],
)
def test_weights_in_onnx(package: str, file: str, count: int) -> None:
    path = folder(package) / file
    expected = dict(weights_of(onnx.load(path).graph))
    assert len(expected) == count
    with safepoint.open(path) as tensors:
        assert sorted(tensors) == sorted(expected)
        for name, array in expected.items():
            assert np.array_equal(tensors[name].numpy(), array), name


def test_weights_in_safetensors() -> None:
    path = folder("silero_vad") / "data/silero_vad_16k.safetensors"
    expected = load_file(path)
    with safepoint.open(path) as tensors:
        assert sorted(tensors) == sorted(expected)
        assert all(np.array_equal(tensors[name].numpy(), array) for name, array in expected.items())


def test_variables_of_a_saved_model() -> None:
    path = folder("basic_pitch") / "saved_models/icassp_2022/nmp"
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    with safepoint.open(path) as tensors:
        assert len(tensors) == 73
        for name in tensors:
            expected = np.asarray(reader.get_tensor(name))
            assert np.array_equal(tensors[name].numpy(), expected.reshape(tensors[name].spec.shape)), name


@pytest.mark.parametrize(
    ("package", "file", "what"),
    [
        ("silero_vad", "data/silero_vad.jit", "is a TorchScript program, and loading it would run what it says"),
        ("basic_pitch", "saved_models/icassp_2022/nmp.tflite", "is a TensorFlow Lite model"),
    ],
)
def test_what_is_not_read_says_why_and_what_would_help(package: str, file: str, what: str) -> None:
    with pytest.raises(safepoint.UnsupportedError, match=what) as caught:
        safepoint.open(folder(package) / file)
    assert caught.value.hint
