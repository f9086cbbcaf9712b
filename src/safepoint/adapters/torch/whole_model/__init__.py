"""Whole PyTorch models: by class and constructor arguments, and put together again from names that were allowed.

`layers` and `describe` write the structure down (`hugging_face`: that of models of `transformers`), `names` decides
what a file may name, `build` constructs it in `isolation`, `compare` proves at save time that it comes back, `weights`
gives it the file's memory, `flags` sets modes; `model` puts them together.
"""
