"""Values from a file, before a layer gets them: lists where Keras would open a path, names that stay in their folder.

Invariant: after the check, no value of a file makes Keras or a layer of the user's open or write a path it names.
"""

from __future__ import annotations

import json
from typing import Any

from safepoint.adapters.keras.state import State
from safepoint.errors import CorruptionError, UntrustedError
from safepoint.tree import StateTree, Tensor

_LISTS = {"vocabulary": (str, int), "idf_weights": (int, float), "bin_boundaries": (int, float), "summary": (list,)}


def check_values(state: State, saved: StateTree, where: str) -> None:
    """Refuse values of layers that are not what `to_tree` writes.

    Raises:
        UntrustedError: a vocabulary that is a path, or a file name that leads elsewhere; nothing was opened.
        CorruptionError: not a layer's state.
    """
    for name in state.assets.keys() & saved.leaves.keys():
        value = saved.leaves[name]
        if isinstance(value, Tensor):
            continue
        for key, content in _document(value, name, where).items():
            if isinstance(content, str):
                raise UntrustedError(
                    f"{where} has a path as {key} of {name}; nothing was opened",
                    expected="the content itself",
                    found=content[:80],
                )
            known = content is None or (isinstance(content, list) and all(isinstance(x, _LISTS[key]) for x in content))
            if not known:
                raise CorruptionError(f"{name} in {where} is no state of a layer", file=where, name=name)
    for place in state.files:
        for name in saved.leaves:
            parts = name.removeprefix(f"{place}/").replace("\\", "/").split("/")
            if name.startswith(f"{place}/") and {"", ".", ".."} & set(parts):
                raise UntrustedError(f"{where} names a file outside of its layer: {name}; nothing was written")


def _document(value: Any, name: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptionError(
            f"{name} in {where} is no state of a layer", file=where, name=name, found=error
        ) from error
    if not isinstance(document, dict) or document.keys() - _LISTS.keys():
        raise CorruptionError(f"{name} in {where} is no state of a layer", file=where, name=name)
    return document
