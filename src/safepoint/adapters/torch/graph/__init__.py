"""PyTorch models as exported graphs: traced from the live module, kept as JSON, run without the model's source.

`trace` gets PyTorch's graph, `write` turns it into the document that `schema` describes, `operators` says what one may
call, `inputs` what a call may bring; `program` runs it, `module` is the loaded model. Nothing in a document is code.
"""
