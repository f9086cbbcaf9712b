"""Into the class, where it is known: the same module, trainable as before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from tests.jax_models import models

import safepoint
import safepoint.adapters.registered
from safepoint.errors import MismatchError, UnsupportedError, UntrustedError


@pytest.fixture(autouse=True)
def _named_tuples_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(safepoint.adapters.registered._BY_NAME, "tests.jax_models.models.Layer", models.Layer)


def same(found: Any, wanted: Any) -> bool:
    """Whether two trees have the same structure, static fields and arrays, bit for bit."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return False
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), found, wanted))


def test_an_equinox_module_comes_back_as_itself_and_trains(tmp_path: Path) -> None:
    model = models.mlp()
    safepoint.save_model(model, tmp_path / "m")
    loaded = safepoint.load_model(tmp_path / "m")
    assert type(loaded) is eqx.nn.MLP
    assert same(eqx.filter(loaded, eqx.is_array), eqx.filter(model, eqx.is_array))
    x = jnp.ones((2, 4))

    @eqx.filter_grad
    def gradient(model: Any) -> Any:
        return (jax.vmap(model)(x) ** 2).sum()

    assert same(gradient(loaded), gradient(model))


def test_a_transformer_of_nnx_comes_back_as_itself_and_trains(tmp_path: Path) -> None:
    model = models.transformer()
    model.blocks[0].dropout.rate = 0.25
    model.eval()
    safepoint.save_model(model, tmp_path / "m")
    loaded = safepoint.load_model(tmp_path / "m")
    assert type(loaded) is models.Transformer
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    assert loaded.blocks[0].dropout.rate == 0.25
    assert loaded.blocks[0].dropout.deterministic
    x = jnp.ones((2, 5), jnp.int32)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        loss, gradient = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, gradient)
        return loss

    losses = []
    for each in (model, loaded):
        each.train()
        optimizer = nnx.Optimizer(each, optax.adam(1e-2), wrt=nnx.Param)
        losses.append([float(step(each, optimizer)) for _ in range(2)])  # dropout has the same keys and counts
    assert losses[0] == losses[1]


def test_a_cnn_of_linen_comes_back_bound_and_its_statistics_change_again(tmp_path: Path) -> None:
    module, variables = models.cnn()
    safepoint.save_model(module, tmp_path / "m", params=variables)
    loaded = safepoint.load_model(tmp_path / "m")
    again, state = loaded.unbind()
    assert type(again) is models.CNN
    assert again == module
    assert same(state, variables)
    x = jnp.ones((2, 8, 8, 2))
    assert jnp.array_equal(loaded(x, False), module.apply(variables, x, False))
    _, changed = again.apply(state, x, True, mutable=["batch_stats"])
    _, wanted = module.apply(variables, x, True, mutable=["batch_stats"])
    assert same(changed, wanted)


def test_a_registered_function_comes_back_with_its_parameters(tmp_path: Path) -> None:
    params, x = models.pytree(), jnp.ones((2, 4))
    safepoint.save_model(models.predict, tmp_path / "m", params=params)
    loaded = safepoint.load_model(tmp_path / "m")
    assert loaded.function is models.predict
    assert same(loaded.params, params)
    assert type(loaded.params["layers"][0]) is models.Layer
    assert jnp.array_equal(loaded(x)["mean"], models.predict(params, x)["mean"])
    assert jax.grad(lambda p: loaded.function(p, x)["mean"].sum())(loaded.params)["scale"].shape == ()


class Head(eqx.Module):
    """A class that nobody registered, with every kind of field."""

    linear: eqx.nn.Linear
    scales: dict[str, Any]
    rest: tuple[Any, ...]
    limit: float
    name: str = eqx.field(static=True)
    act: Any = jnp.tanh
    key: Any = None
    steps: Any = None
    dtype: Any = eqx.field(static=True, default=jnp.bfloat16)

    def __call__(self, x: Any) -> Any:
        return self.act(self.linear(x)) * self.scales["all"] * self.limit


def head() -> Head:
    linear = eqx.nn.Linear(4, 2, key=jax.random.key(0))
    return Head(
        linear, {"all": jnp.ones(2), "n": 3}, (None, np.arange(2, dtype=np.int32)), 2.0, "head", key=jax.random.key(3)
    )


def test_it_is_allowed_by_custom_objects_or_trust_or_not_at_all(tmp_path: Path) -> None:
    model = head()
    safepoint.save_model(model, tmp_path / "m")
    for allowed in ({"custom_objects": {"Head": Head}}, {"trust": "tests"}):
        loaded = safepoint.load_model(tmp_path / "m", **allowed)
        assert type(loaded) is Head
        assert jax.tree.structure(loaded) == jax.tree.structure(model)
        assert (loaded.name, loaded.limit, loaded.rest[0], loaded.scales["n"]) == ("head", 2.0, None, 3)
        assert type(loaded.rest[1]) is np.ndarray
        assert jnp.array_equal(jax.random.key_data(loaded.key), jax.random.key_data(model.key))
        assert loaded.dtype is jnp.bfloat16
        assert jnp.array_equal(loaded(jnp.ones(4)), model(jnp.ones(4)))
    with pytest.raises(UntrustedError, match=r"names .*Head"):
        safepoint.load_model(tmp_path / "m")
    with pytest.raises(UnsupportedError, match="without its graph"):
        safepoint.load_model(tmp_path / "m", form="graph")


def test_the_class_goes_before_the_graph_where_it_is_allowed(tmp_path: Path) -> None:
    safepoint.save_model(head(), tmp_path / "m", example_inputs=(jnp.ones(4),))
    assert type(safepoint.load_model(tmp_path / "m")).__name__ == "GraphModel"
    assert type(safepoint.load_model(tmp_path / "m", trust=("tests",))) is Head
    assert type(safepoint.load_model(tmp_path / "m", trust=("tests",), form="graph")).__name__ == "GraphModel"
    with pytest.raises(UntrustedError, match="Head"):
        safepoint.load_model(tmp_path / "m", form="class")


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_weights_come_in_the_dtype_and_where_they_are_asked_for(dtype: Any, tmp_path: Path) -> None:
    module, variables = models.cnn()
    safepoint.save_model(module, tmp_path / "linen", params=variables)
    safepoint.save_model(head(), tmp_path / "equinox")
    loaded = safepoint.load_model(tmp_path / "linen", dtype=dtype, device=jax.devices()[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(dtype)}
    loaded = safepoint.load_model(tmp_path / "equinox", dtype=dtype, trust=("tests",))
    assert loaded.linear.weight.dtype == jnp.dtype(dtype)
    assert loaded.key.dtype == head().key.dtype
    with pytest.raises(UnsupportedError, match="no floating-point dtype"):
        safepoint.load_model(tmp_path / "linen", dtype="int32")


class Plain(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.linear(x)


def test_arguments_that_were_not_kept_are_asked_for(tmp_path: Path) -> None:
    model = Plain(3, nnx.Rngs(0))
    with pytest.raises(UnsupportedError, match=r"width, rngs\) were not kept"):
        safepoint.save_model(model, tmp_path / "m")
    with pytest.raises(UnsupportedError, match="another model"):
        safepoint.save_model(model, tmp_path / "m", init={"width": 4, "rngs": nnx.Rngs(0)})
    safepoint.save_model(model, tmp_path / "m", init={"width": 3, "rngs": nnx.Rngs(0)})
    loaded = safepoint.load_model(tmp_path / "m", custom_objects={"Plain": Plain})
    assert jnp.array_equal(loaded(jnp.ones((1, 4))), model(jnp.ones((1, 4))))


class Before(NamedTuple):
    w: Any


class After(NamedTuple):
    w: Any
    more: Any = None


def test_a_class_that_has_changed_is_a_mismatch(tmp_path: Path) -> None:
    safepoint.save_model(models.predict, tmp_path / "m", params={"p": Before(jnp.ones(2))})
    with pytest.raises(MismatchError, match="other fields"):
        safepoint.load_model(tmp_path / "m", custom_objects={"Before": After})


class Looking(eqx.Module):
    w: Any

    def __call__(self, x: Any) -> Any:
        return float(x.sum()) * self.w  # a number is asked for while tracing


def test_what_cannot_be_exported_is_saved_with_its_class_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "safepoint"):
        safepoint.save_model(Looking(jnp.ones(2)), tmp_path / "m", example_inputs=(jnp.ones(2),))
    assert "without a graph, so loading it needs the class" in caplog.text
    assert "ConcretizationTypeError" in caplog.text
    assert type(safepoint.load_model(tmp_path / "m", trust=("tests",))) is Looking
    with pytest.raises(UnsupportedError, match=r"code without a name.*; and by its graph: it cannot be exported"):
        safepoint.save_model(
            lambda p, x: float(x.sum()), tmp_path / "n", params={"w": jnp.ones(2)}, example_inputs=(jnp.ones(2),)
        )
    assert not (tmp_path / "n").exists()


def test_a_module_that_has_no_name_is_saved_by_its_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2)(x)

    x = jnp.ones((1, 3))
    variables = Local().init(jax.random.key(0), x)
    with caplog.at_level(logging.WARNING, "safepoint"):
        safepoint.save_model(Local(), tmp_path / "m", params=variables, example_inputs=(x,))
    assert "without its class, for inference only" in caplog.text
    assert jnp.allclose(safepoint.load_model(tmp_path / "m")(x), Local().apply(variables, x))
