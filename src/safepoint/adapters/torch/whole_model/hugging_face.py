"""Hugging Face `transformers` models: by the public name of their class and by the configuration that makes them.

Invariant: a file finds only classes that the installed `transformers` defines and publishes, its configurations hold
plain data that names no code, and nothing is fetched while a model is built.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError

# What `from_pretrained` leaves on modules: how they came to be, which says nothing of what they are.
BOOKKEEPING = frozenset({"_is_hf_initialized", "name_or_path", "hf_device_map", "_weight_conversions", "_use_kernels"})
_PREFIX = "transformers."
_CONFIGS = frozenset({"PreTrainedConfig", "PretrainedConfig"})  # since 5.0, and before
# Their constructors fetch or compile code, or ask another library (timm) to fetch what a name says.
_FETCHING = frozenset({"mra", "rwkv", "sam3_video", "yoso", "timm_backbone", "timm_wrapper"})
# Keys by which a configuration would name code, other weights, or another kind of weights.
_REFUSED = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipelines", "use_timm_backbone", "use_pretrained_backbone"}
    | {"quantization_config", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation"}
    | {"_experts_implementation_internal", "kernel_config", "custom_generate"}
)
# How attention and experts are computed; every other name means code from elsewhere.
_IMPLEMENTATIONS = {
    "attn_implementation": frozenset({"eager", "sdpa", "flex_attention"}),
    "experts_implementation": frozenset({"eager", "grouped_mm", "batched_mm"}),
}
_DTYPES = frozenset({"dtype", "torch_dtype"})
_NOT_KEPT = frozenset({"_name_or_path", "transformers_version"})  # a path of the saver's machine; a version, kept once
_MOST = 1_000_000  # layers, heads, labels: some configurations make a list of each
_MAX_DEPTH = 16


def find(name: str) -> Any:
    """The model or configuration class that a public name of `transformers` means, or None.

    May import that class's own module, and no other.
    """
    short = name.removeprefix(_PREFIX)
    if short == name or not short.isidentifier() or short.startswith("_"):
        return None
    try:
        import transformers
    except ImportError:
        return None
    # Where `transformers` says that its names are, before anything of it is imported because of one in a file.
    parts = str(getattr(transformers, "_class_to_module", {}).get(short)).split(".")
    if short not in transformers.__all__ or parts[0] != "models" or not _FETCHING.isdisjoint(parts):
        return None
    try:
        found = getattr(transformers, short)
    except (ImportError, RuntimeError, AttributeError):  # a class that needs another library, which is not here
        return None
    return found if name_of(found) == name else None


def name_of(kind: Any) -> str | None:
    """`transformers.BertModel` for that class; None for what is no model or configuration of `transformers`' own."""
    library: Any = sys.modules.get("transformers")
    if library is None or not isinstance(kind, type) or not kind.__module__.startswith("transformers.models."):
        return None
    bases: set[str] = {base.__name__ for base in kind.__mro__ if base.__module__.startswith(_PREFIX)}
    if not bases & {"PreTrainedModel", *_CONFIGS} or kind.__module__.split(".")[2] in _FETCHING:
        return None
    short: str = kind.__name__
    return f"{_PREFIX}{short}" if getattr(library, short, None) is kind else None


def arguments(model: Any) -> dict[str, Any]:
    """What a model of `transformers`' own was made with: its configuration, and switches that leave a part out."""
    given: dict[str, Any] = {"config": model.config}
    switches = inspect.signature(type(model)).parameters
    if "add_pooling_layer" in switches and getattr(model, "pooler", None) is None:
        given["add_pooling_layer"] = False
    if "use_mask_token" in switches and getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        given["use_mask_token"] = True
    return given


def is_config(value: Any) -> bool:
    """Whether a value is a configuration of `transformers`, or of a class that derives from one."""
    return is_config_class(type(value))


def is_config_class(kind: type) -> bool:
    """Whether a class is `transformers`' of configurations, or derives from it."""
    return any(base.__name__ in _CONFIGS and base.__module__.startswith(_PREFIX) for base in kind.__mro__)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain data, from which `configured` makes one that says the same.

    Raises:
        UnsupportedError: it cannot be kept; says why.
    """
    data: dict[str, Any] = _kept(config.to_dict())
    for key, known in _IMPLEMENTATIONS.items():
        if (used := getattr(config, f"_{key}", None)) in known:
            data[key] = used
    try:
        again = configured(type(config), data, "the model")
    except (CorruptionError, UntrustedError) as error:
        raise UnsupportedError(f"a configuration that cannot be kept: {error.message}") from error
    if _said(again) != _said(config):
        raise UnsupportedError(f"a {type(config).__name__} that does not come back as it is")
    return data


def configured(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    """The configuration that `plain` took apart.

    Raises:
        UntrustedError: it names code, or asks for something to be fetched.
        CorruptionError: it is no plain data, or no such configuration.
    """
    check(data, where)
    try:
        with offline():
            return kind(**data)
    except Exception as error:  # whatever its validation raises
        raise CorruptionError(
            f"{where} has a configuration that {kind.__name__} does not take", file=where, found=str(error)[:300]
        ) from error


def check(data: Mapping[Any, Any], where: str, depth: int = 0) -> None:
    """Whether a configuration is plain data that names no code.

    Raises:
        UntrustedError: it names code, or asks for something to be fetched.
        CorruptionError: it is no plain data, or counts what no model has so many of.
    """
    for key, value in data.items():
        if not isinstance(key, str | int) or depth > _MAX_DEPTH or str(key).startswith("__"):
            raise CorruptionError(f"{where} has no configuration", file=where, found=str(key)[:60])
        _check_item(str(key), value, where, top=depth == 0)
        todo = [value]
        while todo:
            item = todo.pop()
            if isinstance(item, Mapping):
                check(item, where, depth + 1)
            elif isinstance(item, list | tuple):
                todo += item
            elif not isinstance(item, str | bool | int | float | None):
                raise CorruptionError(f"{where} has no configuration", file=where, found=type(item).__name__)


def _check_item(key: str, value: Any, where: str, *, top: bool) -> None:
    known = _IMPLEMENTATIONS.get(key)
    if (
        (key in _REFUSED and value not in (None, False))
        or (known is not None and not (top and value in known))
        or (key == "model_type" and value in _FETCHING)
    ):
        raise UntrustedError(
            f"the configuration in {where} has {key}={str(value)[:80]!r}, by which code from elsewhere would run, or "
            "weights be fetched; nothing was",
            expected="a configuration of a model that transformers itself defines",
            hint="load it by its graph, where it was saved with example_inputs=",
        )
    if key in _DTYPES and isinstance(value, str) and not isinstance(getattr(torch, value, None), torch.dtype):
        raise CorruptionError(f"the configuration in {where} has no dtype", file=where, found=value[:60])
    if type(value) is int and value > _MOST and any(word in key for word in ("num", "layer", "depth")):
        raise CorruptionError(f"the configuration in {where} has {key}={value:,}", file=where, expected=f"{_MOST:,}")


def generation(model: Any) -> dict[str, Any] | None:
    """How a generative model generates, as plain data, where that is not what its configuration says anyway."""
    config = getattr(model, "generation_config", None)
    if config is None or name_of(type(model)) is None:
        return None
    data = {key: value for key, value in _kept(config.to_dict()).items() if value is not None}
    try:
        check(data, "the model")
        again = generating(type(model), data, "the model")
    except (CorruptionError, UntrustedError):
        return None
    return data if _said(again) == _said(config) else None


def generating(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    """The generation configuration for a model class.

    Raises:
        UntrustedError: it names code.
        CorruptionError: it is none.
    """
    check(data, where)
    try:
        return kind.generation_config_class(**data)
    except Exception as error:
        raise CorruptionError(f"{where} has no generation configuration", file=where, found=str(error)[:300]) from error


def folder_config(model: Any) -> dict[str, Any] | None:
    """What `config.json` says beside a model of `transformers`' own, for `from_pretrained`; None for others."""
    if name_of(type(model)) is None:
        return None
    return {**_kept(model.config.to_dict()), "architectures": [type(model).__name__]}


@contextmanager
def offline() -> Iterator[None]:
    """While a model is built, Hugging Face's client refuses to fetch anything."""
    constants = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _said(config: Any) -> dict[str, Any]:
    """What a configuration says; older switches that are off may be said or not."""
    return {key: value for key, value in _kept(config.to_dict()).items() if key not in _REFUSED}


def _kept(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _kept(value) for key, value in data.items() if key not in _NOT_KEPT}
    return [_kept(item) for item in data] if isinstance(data, list | tuple) else data
