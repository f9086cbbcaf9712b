"""What `show` says of the structure of a whole model: its class, layers and graph, and who wrote it.

Invariant: all of it may be hostile: whatever has another form than ours is left out, and nothing raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_LAYERS = 10_000
_DETAILS = (
    "units", "filters", "kernel_size", "strides", "padding", "pool_size", "num_heads", "key_dim", "input_dim",
    "output_dim", "rate", "activation", "axis", "target_shape", "batch_shape",
)  # fmt: skip
_STYLES = {"nnx": "Flax NNX", "linen": "Flax Linen", "equinox": "Equinox", "function": "function"}


def summary_of(structure: Mapping[str, Any]) -> dict[str, str]:
    """What a structure says in a few words: class, how it was compiled, what its graph takes, who wrote it."""
    kinds = {"keras": _keras_summary, "torch": _torch_summary, "jax": _jax_summary}
    summary = kinds.get(_text(structure.get("kind")), _keras_summary)
    return {key: word for key, word in summary(structure).items() if word}


def layers_of(structure: Mapping[str, Any]) -> list[dict[str, str]]:
    """The layers that a structure lists, nested models flattened: name, class, arguments."""
    root = _mapping(_mapping(structure.get("class")).get("model"))
    return list(_torch_layers(root) if structure.get("kind") == "torch" else _keras_layers(structure.get("config")))


def _keras_summary(structure: Mapping[str, Any]) -> dict[str, str]:
    config = _mapping(structure.get("config"))
    words = {"class": _text(config.get("class_name")), "name": _text(_mapping(config.get("config")).get("name"))}
    compiled = config.get("compile_config")
    if isinstance(compiled, dict):
        words["optimizer"] = _class_name(compiled.get("optimizer"))
        words["loss"] = _class_name(compiled.get("loss"))
    if structure.get("keras_version") is not None:
        words["written by"] = f"Keras {_text(structure.get('keras_version'))} on {_text(structure.get('backend'))}"
    return words


def _torch_summary(structure: Mapping[str, Any]) -> dict[str, str]:
    model = _mapping(_mapping(structure.get("class")).get("model"))
    graph = _mapping(structure.get("graph"))
    sizes = [_mapping(item).get("shape") for item in _list(graph.get("inputs"))]
    return {
        "class": _called(_text(model.get("class")), model.get("arguments")),
        "graph": _signature(graph, sizes) + _operations(graph),
        "written by": f"PyTorch {_text(structure.get('torch_version'))}",
    }


def _jax_summary(structure: Mapping[str, Any]) -> dict[str, str]:
    form = _mapping(structure.get("class"))
    named = _mapping(form.get("class")) or _mapping(form.get("function"))
    name, arguments = named.get("name"), form.get("arguments")
    module = _list(_mapping(form.get("model")).get("module"))
    if len(module) == 2:
        name, arguments = module
    graph = _mapping(structure.get("graph"))
    programs = _list(graph.get("programs"))
    return {
        _STYLES.get(_text(structure.get("style")), "class"): _called(_text(name), arguments),
        "graph": _signature(graph, _list(_mapping(programs[-1]).get("inputs")) if programs else []),
        "written by": f"JAX {_text(structure.get('jax_version'))}",
    }


def _keras_layers(config: Any) -> Iterator[dict[str, str]]:
    pending: list[tuple[Any, str]] = [(config, "")]
    found = 0
    while pending and found < _MAX_LAYERS:
        node, prefix = pending.pop()
        inner = _mapping(node).get("config")
        if not isinstance(inner, dict):
            continue
        layers = inner.get("layers")
        if isinstance(layers, list):
            below = f"{prefix}{_text(inner.get('name'))}/" if node is not config else ""
            pending.extend((layer, below) for layer in reversed(layers))
        else:
            found += 1
            name = f"{prefix}{_text(inner.get('name'))}"
            yield {"name": name, "class": _text(node.get("class_name")), "details": _details(inner)}


def _torch_layers(root: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    pending: list[tuple[Mapping[str, Any], str]] = [(root, "")]
    found = 0
    while pending and found < _MAX_LAYERS:
        node, name = pending.pop()
        pairs = [pair for pair in _list(node.get("children")) if isinstance(pair, list) and len(pair) == 2]
        pending.extend((_mapping(child), f"{name}.{_text(key)}".lstrip(".")) for key, child in reversed(pairs))
        if name and not pairs:
            found += 1
            kind = _text(node.get("class"))
            yield {"name": name, "class": kind.removeprefix("torch.nn."), "details": _arguments(node.get("arguments"))}


def _signature(graph: Mapping[str, Any], shapes: Sequence[Any]) -> str:
    """`x float32[any, 8]` for each input that is an array."""
    inputs = [_mapping(item) for item in _list(graph.get("inputs"))]
    arrays = [item for item in inputs if item.get("dtype") is not None]
    shapes = [shape for shape in shapes if isinstance(shape, list)]
    words = []
    for item, shape in zip(arrays[:4], shapes, strict=False):
        sizes = ", ".join("any" if isinstance(size, str) else _text(size) for size in shape[:8])
        words.append(f"{_text(item.get('name'))} {_text(item.get('dtype'))}[{sizes}]")
    return ", ".join([*words, *(["..."] if len(arrays) > len(words) else [])])


def _operations(graph: Mapping[str, Any]) -> str:
    number = len(_list(graph.get("nodes")))
    return f" in {number:,} operation{'s' if number != 1 else ''}" if number else ""


def _called(name: str, arguments: Any) -> str:
    return f"{name}({_arguments(arguments)})" if name and arguments is not None else name


def _arguments(pairs: Any) -> str:
    """`in_features=8, out_features=4, ...` of [[name, value], ...]."""
    pairs = [pair for pair in _list(pairs) if isinstance(pair, list) and len(pair) == 2]
    words = [f"{_text(name)}={_text(value)}" for name, value in pairs[:4]]
    return ", ".join([*words, *(["..."] if len(pairs) > len(words) else [])])


def _details(config: Mapping[str, Any]) -> str:
    parts = []
    for key in _DETAILS:
        value = config.get(key)
        if isinstance(value, dict):
            value = _class_name(value)
        if value is not None and value != "linear":
            parts.append(f"{key}={_text(value)}")
    return ", ".join(parts[:4])


def _class_name(node: Any) -> str:
    """Of a serialized object; of a function, its name."""
    if isinstance(node, dict):
        inner = node.get("config")
        return _text(inner if isinstance(inner, str) else node.get("class_name"))
    return _text(node)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"({', '.join(_text(item) or 'None' for item in value[:6])}{', ...' if len(value) > 6 else ''})"
    text = str(value) if isinstance(value, str | int | float) else "..."
    return text if len(text) <= 60 else f"{text[:57]}..."
