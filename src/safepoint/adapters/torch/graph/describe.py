"""What a file keeps of a model's graph: the document, and the tensors that only the graph needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safepoint.adapters.torch import tensors
from safepoint.adapters.torch.graph import schema
from safepoint.adapters.torch.graph.trace import trace
from safepoint.adapters.torch.graph.write import Member
from safepoint.tree import Tensor


def describe(
    model: Any, example: Any, stored: Mapping[str, str], walk: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document of a model's graph as plain JSON, and its constants by their names in the file.

    Args:
        model: a module; called in eval mode, and left as it was.
        example: its inputs by position, or a mapping with its inputs by name.
        stored: clean name of a parameter or buffer → its name in the file; ties may be left out.
        walk: gives (clean path, module) of each module.

    Raises:
        UnsupportedError: it cannot be traced, or its graph has what no file may keep.
    """
    document, constants = trace(model, example, [*_members(walk(model), stored)])
    return schema.encode(document), {name: tensors.named_leaf(name, tensor) for name, tensor in constants.items()}


def _members(modules: Iterator[tuple[str, Any]], stored: Mapping[str, str]) -> Iterator[Member]:
    places: dict[int, str] = {}
    for path, module in modules:
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            hidden = "hidden" if name in module._non_persistent_buffers_set else "buffer"
            place = stored.get(full) or places[id(tensor)]
            places.setdefault(id(tensor), place)
            yield Member(full, tensor, "parameter" if name in module._parameters else hidden, place)
