from __future__ import annotations

import keras
import numpy as np
from tests.keras.trees import X, Y, sequential

from safepoint.adapters import keras as adapter
from safepoint.adapters.protocol import Scope
from safepoint.testing.adapter_suite import AdapterSuite


def trained(seed, optimizer="adam"):
    keras.utils.set_random_seed(seed)
    model = sequential(optimizer)
    for _ in range(seed + 1):
        model.train_on_batch(X, Y)
    return model


def text(seed):
    layer = keras.layers.StringLookup()
    layer.adapt(np.array([["a", "b", f"only {seed}"]]))
    return layer


def mean(seed):
    metric = keras.metrics.Mean()
    metric.update_state([float(seed)])
    return metric


class TestKeras(AdapterSuite):
    adapter = adapter

    def objects(self):
        return {
            "compiled": trained,
            "wrapped": lambda seed: trained(seed, keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())),
            "uncompiled": lambda seed: sequential(None),
            "lookup": text,
            "metric": mean,
            "seeds": keras.random.SeedGenerator,
        }


class TestKerasOptimizers(AdapterSuite):
    adapter = adapter

    def objects(self):
        return {"adam": lambda seed: trained(seed).optimizer}

    def scope(self, obj):
        return Scope({id(v): f"model/{index}" for index, v in enumerate(obj._trainable_variables)})
