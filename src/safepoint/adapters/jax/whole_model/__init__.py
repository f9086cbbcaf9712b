"""Whole JAX models: by class and fields or arguments where that is known, and by an exported graph where it is not.

`styles` knows how Flax NNX, Flax Linen, Equinox and plain functions are called and where their arrays are; `values`
writes down what they are made of, `names` decides what a file may name, `classes` builds; `model` puts them together.
"""
