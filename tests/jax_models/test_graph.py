"""Models without their source: saved by each style, run in one process that has neither their classes nor flax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tests.jax_models import models

import safepoint
from safepoint.cli.structure import summary_of
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.repository.model_file import read_model_file

RUN = """
import json, sys, numpy as np
import safepoint
folder = sys.argv[1]
arrays = np.load(f"{folder}/inputs.npz")
results = {}
for name in ("nnx", "linen", "equinox", "function"):
    model = safepoint.load_model(f"{folder}/{name}", form="graph" if name == "equinox" else "auto")
    for size in (1, 7):
        result = model(arrays[f"{name}.{size}"])
        result = result if name != "function" else result["mean"]
        results[f"{name}.{size}"] = np.asarray(result)
    print(name, sorted(model.params)[0])
np.savez(f"{folder}/outputs.npz", **results)
print("flax" in sys.modules, "equinox" in sys.modules, "tests.jax_models.models" in sys.modules)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model saved with a batch of 3."""
    where = tmp_path_factory.mktemp("graphs")
    module, variables = models.cnn()
    safepoint.save_model(models.transformer(), where / "nnx", example_inputs=(jnp.ones((3, 5), jnp.int32),))
    safepoint.save_model(module, where / "linen", params=variables, example_inputs=(jnp.ones((3, 8, 8, 2)), False))
    safepoint.save_model(models.mlp(), where / "equinox", example_inputs=(jnp.ones(4),))
    safepoint.save_model(models.predict, where / "function", params=models.pytree(), example_inputs=(jnp.ones((3, 4)),))
    return where


def live() -> dict[str, Any]:
    """The models as their owners call them, in inference."""
    network = models.transformer()
    network.eval()
    module, variables = models.cnn()
    one, params = models.mlp(), models.pytree()
    return {
        "nnx": nnx.jit(network),
        "linen": jax.jit(lambda x: module.apply(variables, x, False)),
        "equinox": jax.jit(jax.vmap(one)),
        "function": jax.jit(lambda x: models.predict(params, x)["mean"]),
    }


def inputs(name: str, size: int) -> Any:
    random = np.random.default_rng(size)
    if name == "nnx":
        return random.integers(0, 11, (size, 5)).astype(np.int32)
    return random.normal(size=(size, 8, 8, 2) if name == "linen" else (size, 4)).astype(np.float32)


def test_every_style_runs_without_its_source_for_other_batch_sizes(folder: Path) -> None:
    cases = [(name, size) for name in live() for size in (1, 7)]
    np.savez(folder / "inputs.npz", **{f"{name}.{size}": inputs(name, size) for name, size in cases})
    printed = models.in_new_process(RUN, folder).splitlines()
    assert printed == [
        "nnx blocks/0/attention/key/bias",
        "linen batch_stats/BatchNorm_0/mean",
        "equinox layers/0/bias",
        "function layers/0/b",
        "False False False",
    ]
    found = np.load(folder / "outputs.npz")
    originals = live()
    for name, size in cases:
        wanted = originals[name](inputs(name, size))
        np.testing.assert_allclose(found[f"{name}.{size}"], wanted, rtol=1e-5, atol=1e-6)


def test_the_tensors_are_the_models_own_and_no_constants_of_the_graph(folder: Path) -> None:
    _, variables = models.cnn()
    tensors = load_file(folder / "linen")
    assert {n for n in tensors if not n.startswith("__safepoint__/")} == {
        "params/Conv_0/kernel", "params/Conv_0/bias", "params/Dense_0/kernel", "params/Dense_0/bias",
        "params/BatchNorm_0/scale", "params/BatchNorm_0/bias",
        "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var",
    }  # fmt: skip
    assert np.array_equal(tensors["params/Conv_0/kernel"], variables["params"]["Conv_0"]["kernel"])
    leaf = read_model_file(folder / "linen").tree.tensors["__safepoint__/graph/0"]
    text = bytes(leaf.read()).decode()
    assert "models.py" not in text
    assert len(text) < 40_000


def test_an_equinox_module_takes_one_sample_or_many(folder: Path) -> None:
    model, one = safepoint.load_model(folder / "equinox", form="graph"), models.mlp()
    x = inputs("equinox", 6)
    np.testing.assert_allclose(model(x[0]), one(x[0]), rtol=1e-6)
    np.testing.assert_allclose(model(x), jax.vmap(one)(x), rtol=1e-6)


def test_an_equinox_module_may_be_shown_a_batch(tmp_path: Path) -> None:
    x = jnp.ones((2, 4))
    safepoint.save_model(models.mlp(), tmp_path / "model", example_inputs=(x,))
    model = safepoint.load_model(tmp_path / "model", form="graph")
    np.testing.assert_allclose(model(inputs("equinox", 5)), jax.vmap(models.mlp())(inputs("equinox", 5)), rtol=1e-6)


def test_results_keep_their_nesting_and_constants(folder: Path) -> None:
    model = safepoint.load_model(folder / "function", form="graph")
    found, wanted = model(inputs("function", 2)), models.predict(models.pytree(), inputs("function", 2))
    assert list(found) == list(wanted)
    assert found["none"] is None
    assert [each.dtype for each in found["top"]] == [jnp.float32, jnp.int32]
    np.testing.assert_allclose(found["top"][0], wanted["top"][0], rtol=1e-6)


def test_a_graph_runs_inside_jit_and_has_no_gradient(folder: Path) -> None:
    model = safepoint.load_model(folder / "function", form="graph")
    x = inputs("function", 2)
    jitted = jax.jit(lambda x: model(x)["mean"] + 1)(x)
    np.testing.assert_allclose(jitted, model(x)["mean"] + 1, rtol=1e-6)
    with pytest.raises(UnsupportedError, match="for inference, and has no gradient"):
        jax.grad(lambda x: model(x)["mean"].sum())(x)


def test_a_call_that_does_not_fit_says_which_argument(folder: Path) -> None:
    model = safepoint.load_model(folder / "linen", form="graph")
    x = inputs("linen", 2)
    assert model(x).shape == model(x, False).shape == model(x, train=False).shape == (2, 3)
    for call, words in [
        (lambda: model(x, True), "train is True"),
        (lambda: model(x[..., :1]), "x has the shape"),
        (lambda: model(x.astype(np.int32)), "x is int32"),
        (model, "other arguments"),
        (lambda: model(x, y=1), "other arguments"),
        (lambda: model(x, x=x), "other arguments"),
        (lambda: model("x"), "x is 'x'"),
    ]:
        with pytest.raises(MismatchError, match=words):
            call()
    assert model(np.float64(x)).dtype == jnp.float32  # as JAX itself takes it


def test_a_model_for_one_size_only_is_saved_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fixed(params: Any, x: Any) -> Any:
        return (x.reshape(-1, 6) @ params["w"]).sum()

    with caplog.at_level(logging.WARNING, "safepoint"):
        safepoint.save_model(fixed, tmp_path / "m", params={"w": jnp.ones(6)}, example_inputs=(jnp.ones((4, 3)),))
    assert "for the sizes of example_inputs only" in caplog.text
    model = safepoint.load_model(tmp_path / "m", form="graph")
    assert model(jnp.ones((4, 3))) == 12
    with pytest.raises(MismatchError, match="x has the shape"):
        model(jnp.ones((2, 6)))


def test_sizes_that_are_equal_in_the_example_are_one_size(tmp_path: Path) -> None:
    def add(params: Any, x: Any, weight: Any, table: Any) -> Any:
        return (x * weight[:, None] + params["b"]).sum() + table.sum()

    example = (jnp.ones((3, 2)), jnp.ones(3), jnp.ones((5, 2)))
    safepoint.save_model(add, tmp_path / "m", params={"b": jnp.ones(2)}, example_inputs=example)
    model = safepoint.load_model(tmp_path / "m", form="graph")
    assert repr(model) == "GraphModel(x: float32[b, 2], weight: float32[b], table: float32[c, 2]; 1 tensors)"
    assert model(jnp.ones((4, 2)), jnp.ones(4), jnp.ones((7, 2))) == 4 * 2 * 2 + 14
    with pytest.raises(MismatchError, match="weight"):
        model(jnp.ones((4, 2)), jnp.ones(3), jnp.ones((7, 2)))


def test_other_sizes_may_be_named_by_the_caller(tmp_path: Path) -> None:
    b, n = jax.export.symbolic_shape("b, n")
    example = (jax.ShapeDtypeStruct((b, n), jnp.float32),)
    safepoint.save_model(
        lambda p, x: x.sum(1) * p["w"], tmp_path / "m", params={"w": jnp.ones(())}, example_inputs=example
    )
    model = safepoint.load_model(tmp_path / "m")
    assert model(jnp.ones((2, 9))).tolist() == [9, 9]


def test_keys_are_inputs_parameters_and_results(tmp_path: Path) -> None:
    def noisy(params: Any, x: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        return x + params["w"] * jax.random.normal(first, x.shape) + jax.random.uniform(params["key"]), second

    params = {"w": jnp.ones(3), "key": jax.random.key(3)}
    x, key = jnp.ones((2, 3)), jax.random.key(7)
    safepoint.save_model(noisy, tmp_path / "m", params=params, example_inputs=(x, key))
    model = safepoint.load_model(tmp_path / "m", form="graph")
    found, wanted = model(x, jax.random.key(9)), noisy(params, x, jax.random.key(9))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    assert jnp.array_equal(jax.random.key_data(found[1]), jax.random.key_data(wanted[1]))
    assert jax.random.key_impl(model.params["key"]) == jax.random.key_impl(params["key"])
    with pytest.raises(MismatchError, match="key is a"):
        model(x, jax.random.key(9, impl="rbg"))


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    network = models.transformer()
    before = nnx.graphdef(network), jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    safepoint.save_model(network, tmp_path / "m", example_inputs=(jnp.ones((2, 5), jnp.int32),))
    after = nnx.graphdef(network), jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    assert before[0] == after[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, before[1], after[1]))


def test_weights_go_where_they_are_asked_to(folder: Path) -> None:
    model = safepoint.load_model(folder / "linen", form="graph", device="cpu:0")
    assert all(array.devices() == {jax.devices("cpu")[0]} for array in model.params.values())
    with pytest.raises(UnsupportedError, match="no device 'gpu:3'"):
        safepoint.load_model(folder / "linen", form="graph", device="gpu:3")


def test_a_graph_computes_in_the_dtype_that_it_was_exported_in(folder: Path) -> None:
    assert safepoint.load_model(folder / "linen", form="graph", dtype="float32")(inputs("linen", 1)).shape == (1, 3)
    with pytest.raises(UnsupportedError, match="computes in float32"):
        safepoint.load_model(folder / "linen", form="graph", dtype="bfloat16")


def test_what_cannot_be_saved_says_what_to_do(tmp_path: Path) -> None:
    x = jnp.ones((2, 4))
    module, variables = models.cnn()

    def printing(params: Any, x: Any) -> Any:
        jax.debug.print("{x}", x=x)
        return x * params["w"]

    def factor(params: Any, x: Any) -> Any:
        return x @ jnp.linalg.qr(params["w"])[0]

    w = {"w": jnp.eye(4)}
    for model, more, words in [
        (module, {"example_inputs": (x,)}, "does not hold its parameters"),
        (models.predict, {"example_inputs": (x,)}, "does not hold its parameters"),
        (models.mlp(), {"params": w}, "has its parameters inside"),
        (models.mlp(), {"optimizer": w}, "optimizer= is for PyTorch"),
        (lambda p, x: x * p, {"params": jnp.ones(4), "example_inputs": (x,)}, "single leaf"),
        (printing, {"params": w, "example_inputs": (x,)}, "cannot be exported"),
        (factor, {"params": w, "example_inputs": (x,)}, "custom call"),
        (
            lambda p, x: eqx.nn.Linear(4, 4, key=jax.random.key(0)),
            {"params": w, "example_inputs": (x,)},
            "no file may name",
        ),
        (lambda p, x: x, {"params": w, "example_inputs": (object(),)}, "in example_inputs="),
        (lambda p, x: x, {"params": w}, "example_inputs="),
    ]:
        with pytest.raises(UnsupportedError, match=words):
            safepoint.save_model(model, tmp_path / "m", **more)
    assert not (tmp_path / "m").exists()
    del variables


@pytest.mark.parametrize(
    ("style", "name", "graph"),
    [
        ("nnx", "tests.Transformer(words=11, depth=1, rngs=...)", "tokens int32[any, 5]"),
        ("linen", "tests.CNN()", "x float32[any, 8, 8, 2]"),
        ("equinox", "equinox.nn.MLP(", "x float32[any, 4]"),
        ("function", "tests.predict", "float32[any, 4]"),
    ],
)
def test_what_show_says_of_it(style: str, name: str, graph: str, folder: Path) -> None:
    summary = summary_of(read_model_file(folder / style).structure)
    assert next(iter(summary.values())).startswith(name)
    assert summary["graph"].endswith(graph)
    assert summary["written by"] == f"JAX {jax.__version__}"
