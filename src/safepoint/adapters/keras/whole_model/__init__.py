"""Whole Keras models: structure out of a model, and a model out of a structure that nobody has to trust.

`structure` describes and builds; `allowed`, `check` and `guard` decide what a file may name; `archive`, `container` and
`weights` read native `.keras` files; `model` puts structure and state together.
"""
