"""JAX models as exported graphs: traced from the live model, kept as StableHLO text, run without the model's source.

`trace` has JAX export the model and `describe` writes it down; `schema` and `nesting` are the document, `inputs` binds
a call; `text` looks at the graph before MLIR does, `check` at every operation before XLA does; `module` is the loaded
model. Weights are arguments of a graph, never part of it.
"""
