"""torch.nn's own layers: which may be named, and the constructor arguments of an instance.

Invariant: whatever is recovered here is built and compared with the instance before anything is saved, so a wrong rule
is a refusal and never a wrong model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

# Children are put in one by one; the constructor is called without arguments.
CONTAINERS: tuple[type, ...] = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
LISTS: tuple[type, ...] = (nn.ParameterList, nn.ParameterDict)

# Abstract, deprecated, wrappers of processes and devices, or layers that turn into others at their first batch.
_NOT_NAMED = frozenset({"Container", "DataParallel", "NLLLoss2d", "RNNBase", "RNNCellBase", "SyncBatchNorm"})
# Not kept: where and in what precision (the tensors say), and spellings of old versions.
_NOT_KEPT = frozenset({"device", "dtype", "size_average", "reduce", "min_value", "max_value"})
_NOT_KEPT |= {"_weight", "_freeze"}
_DIFFERENT_NAME = {nn.PairwiseDistance: {"p": "norm"}}
# How many layers a layer consists of.
COUNTS = ("num_layers", "num_encoder_layers", "num_decoder_layers")

Arguments = dict[str, Any]


@cache
def public() -> Mapping[str, type]:
    """`torch.nn.<name>` → class: what torch itself defines and publishes there. Constructors of these only compute."""
    found = {name: vars(nn)[name] for name in dir(nn) if isinstance(vars(nn).get(name), type)}
    return {
        f"torch.nn.{name}": kind
        for name, kind in found.items()
        if issubclass(kind, nn.Module)
        and kind.__module__.startswith("torch.nn.modules.")
        and kind.__name__ == name
        and name not in _NOT_NAMED
        and not issubclass(kind, nn.modules.lazy.LazyModuleMixin)
    }


def name_of(kind: type) -> str | None:
    """The public name of one of torch's own classes; None for any other class, subclasses too."""
    name = f"torch.nn.{kind.__name__}"
    return name if public().get(name) is kind else None


def arguments(layer: Any) -> Arguments:
    """The constructor arguments that make such a layer again, without its weights.

    Raises:
        AttributeError: an attribute that should hold one is gone.
    """
    kind = type(layer)
    if kind in _RULES:
        return _RULES[kind](layer)
    return _from_attributes(layer, kind)


def _from_attributes(layer: Any, kind: type) -> Arguments:
    names = _DIFFERENT_NAME.get(kind, {})
    return {name: _argument(layer, names.get(name, name)) for name in _parameters(kind)}


@cache
def _parameters(kind: type) -> tuple[str, ...]:
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [p.name for p in signature.parameters.values() if p.kind in named]
    return tuple(name for name in found if name != "self" and name not in _NOT_KEPT)


def _argument(layer: Any, name: str) -> Any:
    value = getattr(layer, name)
    if name == "bias":
        return value if isinstance(value, bool) else value is not None
    return value


def _recurrent(layer: Any) -> Arguments:
    shared = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    given = {name: getattr(layer, name) for name in shared}
    if isinstance(layer, nn.LSTM):
        given["proj_size"] = layer.proj_size
    if isinstance(layer, nn.RNN):
        given["nonlinearity"] = layer.nonlinearity
    return given


def _cell(layer: Any) -> Arguments:
    given = {"input_size": layer.input_size, "hidden_size": layer.hidden_size, "bias": layer.bias}
    return {**given, "nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNNCell) else given


def _attention(layer: Any) -> Arguments:
    return {
        "embed_dim": layer.embed_dim,
        "num_heads": layer.num_heads,
        "dropout": layer.dropout,
        "bias": layer.in_proj_bias is not None,
        "add_bias_kv": layer.bias_k is not None,
        "add_zero_attn": layer.add_zero_attn,
        "kdim": layer.kdim,
        "vdim": layer.vdim,
        "batch_first": layer.batch_first,
    }


def _transformer_layer(layer: Any) -> Arguments:
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "activation": layer.activation,
        "layer_norm_eps": layer.norm1.eps,
        "batch_first": layer.self_attn.batch_first,
        "norm_first": layer.norm_first,
        "bias": layer.linear1.bias is not None,
    }


def _encoder(layer: Any) -> Arguments:
    given = {"encoder_layer": layer.layers[0], "num_layers": layer.num_layers, "norm": layer.norm}
    return {**given, "enable_nested_tensor": layer.enable_nested_tensor, "mask_check": layer.mask_check}


def _decoder(layer: Any) -> Arguments:
    return {"decoder_layer": layer.layers[0], "num_layers": layer.num_layers, "norm": layer.norm}


def _transformer(layer: Any) -> Arguments:
    given = {"d_model": layer.d_model, "nhead": layer.nhead, "batch_first": layer.batch_first}
    return {**given, "custom_encoder": layer.encoder, "custom_decoder": layer.decoder}


def _adaptive_softmax(layer: Any) -> Arguments:
    cutoffs = list(layer.cutoffs[:-1])  # the constructor adds the number of classes
    given = {"in_features": layer.in_features, "n_classes": layer.n_classes, "cutoffs": cutoffs}
    return {**given, "div_value": layer.div_value, "head_bias": layer.head_bias}


def _resize_2d(layer: Any) -> Arguments:
    return {"size": layer.size, "scale_factor": layer.scale_factor}


def _linear_cross_entropy(layer: Any) -> Arguments:
    same = ("num_classes", "out_features", "reduction", "weight", "ignore_index", "label_smoothing", "options")
    given = {name: getattr(layer, name) for name in same}
    return {"in_features": layer.linear.in_features, "bias": layer.linear.bias is not None, **given}


_RULES: dict[type, Callable[[Any], Arguments]] = {
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.RNNCell: _cell,
    nn.LSTMCell: _cell,
    nn.GRUCell: _cell,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.TransformerDecoderLayer: _transformer_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
    nn.AdaptiveLogSoftmaxWithLoss: _adaptive_softmax,
    nn.UpsamplingBilinear2d: _resize_2d,
    nn.UpsamplingNearest2d: _resize_2d,
}
if hasattr(nn, "LinearCrossEntropyLoss"):  # since torch 2.13
    _RULES[nn.LinearCrossEntropyLoss] = _linear_cross_entropy


def parameter_list(layer: Any) -> list[tuple[str | None, Any]]:
    """(key, value) of a ParameterList (keys are None) or ParameterDict, in order; values may be anything."""
    if isinstance(layer, nn.ParameterDict):
        return [(key, layer[key]) for key in layer.keys()]  # noqa: SIM118 — it is no dict
    return [(None, layer[index]) for index in range(len(layer))]


def placeholder(shape: tuple[int, ...], dtype: str, *, parameter: bool) -> Any:
    """A tensor whose content comes from the file's own tensors; a parameter where the list holds one."""
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if parameter else tensor
