"""ONNX and GGUF files of their own writers, compared with what those read."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.formats.comparing import assert_same, read_apart

import safepoint

ARRAYS = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4), "f16": np.arange(4, dtype=np.float16),
    "f64": np.ones(3), "i64": np.array([-1, 2**40]), "i8": np.array([-1, 2], np.int8), "b": np.array([True, False]),
    "scalar": np.float32(2.5).reshape(()), "empty": np.zeros((0, 3), np.float32), "u64": np.array([2**63], np.uint64),
    "c64": np.array([1 + 2j], np.complex64),
}  # fmt: skip


def model_of(initializers: list[TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Identity", ["f32"], ["y"])], "g", [], [], initializers)
    return helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("raw", [True, False])
def test_onnx_initializers(raw, tmp_path: Path) -> None:
    made = [
        numpy_helper.from_array(array, name)
        if raw
        else helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel().tolist())
        for name, array in ARRAYS.items()
    ]
    onnx.save(model_of(made), tmp_path / "m")
    expected = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m").graph.initializer}
    with safepoint.open(tmp_path / "m") as tensors:
        assert (tensors.kind, tensors.framework) == ("onnx", "ONNX")
        assert_same(tensors, expected)
        assert tensors.metadata["producer"] == "test"
        assert tensors.metadata["opsets"] == {"ai.onnx": 20}
        assert tensors.metadata["nodes"] == 1
    assert read_apart(tmp_path / "m")[str(tmp_path / "m")].keys() == expected.keys()


def test_onnx_external_data(tmp_path: Path) -> None:
    made = [numpy_helper.from_array(np.arange(5000.0).reshape(50, 100), "w"), numpy_helper.from_array(np.ones(9), "v")]
    onnx.save(model_of(made), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.onnx").stat().st_size < 2000
    with safepoint.open(tmp_path / "m.onnx") as tensors:
        assert np.array_equal(tensors["w"].numpy(), np.arange(5000.0).reshape(50, 100))
        assert np.array_equal(tensors["w"][7, :3], np.arange(700.0, 703.0))
        assert np.array_equal(tensors["v"].numpy(), np.ones(9))


def test_gguf(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "größe"])
    writer.add_array("numbers", [1.5, 2.5])
    plain = {"w": rng.random((6, 64)).astype(np.float32), "h": rng.random((3, 4, 5)).astype(np.float16)}
    for name, array in plain.items():
        writer.add_tensor(name, array)
    source = rng.random((4, 512)).astype(np.float32)
    kinds = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.BF16]
    for kind in kinds:
        writer.add_tensor(kind.name, gguf.quants.quantize(source, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    with safepoint.open(tmp_path / "m.gguf") as tensors:
        assert tensors.kind == "gguf"
        assert list(tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            assert tensors[tensor.name].numpy().tobytes() == tensor.data.tobytes(), tensor.name
        for name, array in plain.items():
            assert np.array_equal(tensors[name].numpy(), array)
        assert tensors["BF16"].spec.dtype == "bfloat16"
        assert tensors["Q8_0"].shape == (4, 512 // 32 * 34)
        assert tensors.metadata["quantized"]["Q8_0"] == {"type": "Q8_0", "shape": [4, 512]}
        values = tensors.metadata["values"]
        assert values["general.architecture"] == "llama"
        assert values["llama.block_count"] == 3
        assert values["tokenizer.ggml.tokens"] == ["a", "größe"]
        assert values["numbers"] == [1.5, 2.5]


def test_the_sizes_of_quantized_blocks_are_those_of_gguf() -> None:
    from safepoint.formats import gguf as ours

    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for kind, described in ours._QUANTIZED.items():
        assert theirs[kind] == described
