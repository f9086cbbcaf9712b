"""What a file keeps of a model's graph: the document, and the texts of its programs as tensors of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from safepoint.adapters.jax.graph import schema
from safepoint.adapters.jax.graph.trace import Subject, trace
from safepoint.tree import Tensor


def describe(subject: Subject, example: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document of a model's graph as plain JSON, and the texts by their names in the file.

    Raises:
        UnsupportedError: it cannot be exported, or does what no graph may do.
    """
    document, texts = trace(subject, example)
    return schema.encode(document), {name: Tensor.of(np.frombuffer(t, np.uint8)) for name, t in texts.items()}
