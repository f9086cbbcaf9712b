"""Whole-model files: what `show` says of their structure, and how `verify` checks them; all of it is hostile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safepoint.repository import Damage, Progress
    from safepoint.repository.stored import Block

_MAX_LAYERS = 10_000
_DETAILS = (
    "units", "filters", "kernel_size", "strides", "padding", "pool_size", "num_heads", "key_dim", "input_dim",
    "output_dim", "rate", "activation", "axis", "target_shape", "batch_shape",
)  # fmt: skip


def verify_file(path: Path, progress: Progress | None) -> tuple[int, list[Damage]]:
    """Read every block of a model file and compare digests; returns the bytes read and what is damaged.

    Raises:
        CorruptionError: the header is damaged.
    """
    import numpy as np

    from safepoint.codec import digest
    from safepoint.errors import CorruptionError
    from safepoint.repository import read_model_file
    from safepoint.repository.survey import damage_of

    model = read_model_file(path)
    places: dict[int, tuple[Block, str, int]] = {}  # tied weights are the same blocks
    for name, stored in model.stored.items():
        start = 0
        for block in stored.blocks:
            places.setdefault(block.offset, (block, name, start))
            start += block.length
    total = sum(block.length for block, _, _ in places.values())
    done, damage = 0, []
    with path.open("rb") as file:
        for offset, (block, name, start) in sorted(places.items()):
            file.seek(offset)
            data = np.frombuffer(file.read(block.length), np.uint8)
            if len(data) != block.length or digest(data) != block.digest:
                span = (start, start + block.length)
                message = f"{name}, bytes {span[0]}-{span[1]}, is damaged in {path}"
                error = CorruptionError(message, file=path.name, name=name, span=span)
                damage.append(damage_of((), error, model.stored[name].spec))
            done += block.length
            if progress is not None:
                progress(done, total)
    return done, damage


def layers_of(structure: Mapping[str, Any]) -> list[dict[str, str]]:
    """The layers that a Keras configuration lists, nested models flattened: name, class, arguments."""
    found: list[dict[str, str]] = []
    pending: list[tuple[Any, str]] = [(structure.get("config"), "")]
    while pending and len(found) < _MAX_LAYERS:
        node, prefix = pending.pop()
        config = node.get("config") if isinstance(node, dict) else None
        if not isinstance(config, dict):
            continue
        layers = config.get("layers")
        if isinstance(layers, list):
            inner = f"{prefix}{_text(config.get('name'))}/" if node is not structure.get("config") else ""
            pending.extend((layer, inner) for layer in reversed(layers))
        else:
            found.append(
                {
                    "name": f"{prefix}{_text(config.get('name'))}",
                    "class": _text(node.get("class_name")),
                    "details": _details(config),
                }
            )
    return found


def summary_of(structure: Mapping[str, Any]) -> dict[str, str]:
    """What a structure says in a few words: class, name, how it was compiled, which versions wrote it."""
    config = structure.get("config")
    config = config if isinstance(config, dict) else {}
    inner = config.get("config")
    compiled = config.get("compile_config")
    words = {"class": _text(config.get("class_name"))}
    if isinstance(inner, dict):
        words["name"] = _text(inner.get("name"))
    if isinstance(compiled, dict):
        words["optimizer"] = _class_name(compiled.get("optimizer"))
        words["loss"] = _class_name(compiled.get("loss"))
    if structure.get("keras_version") is not None:
        words["written by"] = f"Keras {_text(structure.get('keras_version'))} on {_text(structure.get('backend'))}"
    return {key: word for key, word in words.items() if word}


def _details(config: Mapping[str, Any]) -> str:
    parts = []
    for key in _DETAILS:
        value = config.get(key)
        if isinstance(value, dict):
            value = _class_name(value)
        if value is not None and value != "linear":
            parts.append(f"{key}={_text(value)}")
    return " ".join(parts[:4])


def _class_name(node: Any) -> str:
    """Of a serialized object; of a function, its name."""
    if isinstance(node, dict):
        inner = node.get("config")
        return _text(inner if isinstance(inner, str) else node.get("class_name"))
    return _text(node)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"({', '.join(_text(item) or 'None' for item in value[:6])}{', ...' if len(value) > 6 else ''})"
    text = str(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
