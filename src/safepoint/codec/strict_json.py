"""JSON as the standard has it: what Python's reader lets pass beyond that is refused."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: bytes) -> Any:
    """The value in `text`: UTF-8, no key twice, no NaN, no half of a surrogate pair.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    decoded = text.decode("utf-8")
    value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_constant)
    if "\\ud" in decoded.lower():  # half a surrogate pair is no text, though Python takes it
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
