from __future__ import annotations

import tensorflow as tf

from safepoint.adapters import tensorflow as adapter
from safepoint.testing.adapter_suite import AdapterSuite


class Module(tf.Module):
    def __init__(self, seed):
        super().__init__()
        self.w = tf.Variable(tf.random.stateless_normal((3, 2), (seed, 1)))
        self.more = [tf.Variable(seed), {"half": tf.Variable(tf.cast([seed, 1], tf.bfloat16))}]
        self.generator = tf.random.Generator.from_seed(seed)


def table(seed):
    made = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    made.insert(["a", f"only {seed}"], tf.constant([seed, 2], tf.int64))
    return made


def iterator(seed):
    options = tf.data.Options()
    options.autotune.enabled = False  # it puts a prefetching thread in, which goes on between two looks
    made = iter(tf.data.Dataset.range(30).shuffle(10, seed=1).with_options(options))
    for _ in range(seed + 1):
        next(made)
    return made


class TestTensorFlow(AdapterSuite):
    adapter = adapter

    def objects(self):
        return {"module": Module, "generator": tf.random.Generator.from_seed, "iterator": iterator}


class TestTables(AdapterSuite):
    adapter = adapter
    test_a_part_leaves_the_rest_alone = None  # keys without values are no part

    def objects(self):
        return {"table": table}
