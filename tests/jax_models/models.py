"""Models of each style, small; what runs without them is in processes that never import this module."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import safepoint


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, dropout_rate=0.1, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x))
        return x + self.dropout(self.down(nnx.gelu(self.up(x))))


@safepoint.register("tests.Transformer")
class Transformer(nnx.Module):
    """Tokens to logits; the embedding is the head, too."""

    def __init__(self, words: int, width: int = 8, depth: int = 2, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(words, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))


@safepoint.register("tests.CNN")
class CNN(nn.Module):
    """A CNN whose batch statistics change as it trains."""

    classes: int = 3
    act: Any = nn.relu

    @nn.compact
    def __call__(self, x: Any, train: Any) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.max_pool(self.act(x), (2, 2), (2, 2))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Layer(NamedTuple):
    w: Any
    b: Any


@safepoint.register("tests.predict")
def predict(params: Any, x: Any) -> Any:
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer.w + layer.b)
    return {"mean": x.mean(-1) * params["scale"], "top": jax.lax.top_k(x, 2), "none": None}


def transformer() -> Transformer:
    return Transformer(11, depth=1, rngs=nnx.Rngs(0, dropout=1))


def cnn() -> tuple[CNN, Any]:
    model = CNN()
    return model, model.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)), True)


def mlp() -> Any:
    return eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))


def pytree() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [Layer(jax.random.normal(key, (4, 4)), jnp.full(4, 0.1)) for key in keys]
    return {"layers": layers, "scale": 2.0}


def in_new_process(code: str, *arguments: object) -> str:
    """What a program prints that imports none of the above, and has no warnings."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
