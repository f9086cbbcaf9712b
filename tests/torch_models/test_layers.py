"""Every layer that torch.nn publishes, with arguments that are not its defaults, comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch_models.models import assert_same_state, there_and_back
from torch import nn

from safepoint.adapters.torch.whole_model import layers

functional = nn.functional


def _encoder_layer(**options: Any) -> nn.Module:
    given = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.2, "batch_first": True, **options}
    return nn.TransformerEncoderLayer(**given)


def _decoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerDecoderLayer(8, 4, 12, 0.3, **options)


# name → instances; the arguments are chosen to differ from what the constructor would do without them.
LAYERS: dict[str, list[Any]] = {
    "AdaptiveAvgPool1d": [(5,), (None,)],
    "AdaptiveAvgPool2d": [((5, None),)],
    "AdaptiveAvgPool3d": [((5, 7, 9),)],
    "AdaptiveLogSoftmaxWithLoss": [(8, 20, [5, 10], 2.0, True)],
    "AdaptiveMaxPool1d": [(5, True)],
    "AdaptiveMaxPool2d": [((5, 7), True)],
    "AdaptiveMaxPool3d": [(3,)],
    "AlphaDropout": [(0.3, True)],
    "AvgPool1d": [(3, 2, 1, True, False)],
    "AvgPool2d": [((3, 2), (2, 1), (1, 0), True, False, 5)],
    "AvgPool3d": [(3, 2, 1, True, False, 7)],
    "BCELoss": [(torch.rand(3), None, None, "sum")],
    "BCEWithLogitsLoss": [(torch.rand(3), None, None, "sum", torch.rand(3)), ()],
    "BatchNorm1d": [(4, 1e-3, None, False, True), (4, 1e-3, 0.2, True, False)],
    "BatchNorm2d": [(4, 1e-3, 0.2)],
    "BatchNorm3d": [(4,)],
    "Bilinear": [(3, 4, 5, False)],
    "CELU": [(1.5, True)],
    "CTCLoss": [(1, "sum", True)],
    "ChannelShuffle": [(2,)],
    "CircularPad1d": [((1, 2),)],
    "CircularPad2d": [((1, 2, 3, 4),)],
    "CircularPad3d": [(2,)],
    "ConstantPad1d": [(2, 3.5)],
    "ConstantPad2d": [((1, 2, 3, 4), -1.0)],
    "ConstantPad3d": [(2, 0.5)],
    "Conv1d": [(4, 6, 3, 2, "valid", 2, 2, False, "zeros"), (4, 6, 3, 1, "same", 1, 1, True, "circular")],
    "Conv2d": [(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), 2, False, "reflect")],
    "Conv3d": [(4, 6, 3, 1, 1, 1, 1, True, "replicate")],
    "ConvTranspose1d": [(4, 6, 3, 2, 1, 1, 2, False, 2)],
    "ConvTranspose2d": [(4, 6, (3, 5), 2, 1, (1, 0))],
    "ConvTranspose3d": [(4, 6, 3)],
    "CosineEmbeddingLoss": [(0.3, None, None, "sum")],
    "CosineSimilarity": [(2, 1e-4)],
    "CrossEntropyLoss": [(torch.rand(5), None, 3, None, "sum", 0.1), ()],
    "CrossMapLRN2d": [(3, 1e-3, 0.5, 2.0)],
    "Dropout": [(0.3, True)],
    "Dropout1d": [(0.3,)],
    "Dropout2d": [(0.3,)],
    "Dropout3d": [(0.3,)],
    "ELU": [(1.5, True)],
    "Embedding": [(10, 4, 3, 2.0, 1.0, True, True), (10, 4, -1)],
    "EmbeddingBag": [(10, 4, 2.0, 1.0, False, "sum", True, None, True, 2)],
    "FeatureAlphaDropout": [(0.3,)],
    "Flatten": [(2, -2)],
    "Fold": [((4, 5), (2, 2), 1, 0, 2)],
    "FractionalMaxPool2d": [(3, (13, 12), None, True), (3, None, (0.5, 0.6))],
    "FractionalMaxPool3d": [(3, (13, 12, 11))],
    "GELU": [("tanh",)],
    "GLU": [(1,)],
    "GRU": [(3, 4, 2, False, True, 0.2, True)],
    "GRUCell": [(3, 4, False)],
    "GaussianNLLLoss": [lambda: nn.GaussianNLLLoss(full=True, eps=1e-3, reduction="sum")],
    "GroupNorm": [(2, 4, 1e-3, False), (2, 4)],
    "Hardshrink": [(0.7,)],
    "Hardsigmoid": [(True,)],
    "Hardswish": [(True,)],
    "Hardtanh": [(-2.0, 3.0, True)],
    "HingeEmbeddingLoss": [(2.0, None, None, "sum")],
    "HuberLoss": [("sum", 2.0)],
    "Identity": [(), (54, "ignored")],
    "InstanceNorm1d": [(4, 1e-3, 0.2, True, True)],
    "InstanceNorm2d": [(4,)],
    "InstanceNorm3d": [(4, 1e-3, 0.2, True, False)],
    "KLDivLoss": [(None, None, "batchmean", True)],
    "L1Loss": [(None, None, "sum")],
    "LPPool1d": [(2.0, 3, 2, True)],
    "LPPool2d": [(3, (3, 2), (1, 2))],
    "LPPool3d": [(3, 2)],
    "LSTM": [(3, 4, 2, True, True, 0.2, True, 2), (3, 4)],
    "LSTMCell": [(3, 4, False)],
    "LayerNorm": [((3, 4), 1e-3, True, False), (4, 1e-5, False)],
    "LeakyReLU": [(0.3, True)],
    "Linear": [(3, 4, False), (3, 4)],
    "LinearCrossEntropyLoss": [lambda: nn.LinearCrossEntropyLoss(3, 4, bias=True, reduction="sum", ignore_index=2)],
    "LocalResponseNorm": [(3, 1e-3, 0.5, 2.0)],
    "LogSigmoid": [()],
    "LogSoftmax": [(1,)],
    "MSELoss": [(None, None, "none")],
    "MarginRankingLoss": [(0.5, None, None, "sum")],
    "MaxPool1d": [(3, 2, 1, 2, True, True)],
    "MaxPool2d": [((3, 2), (2, 1), (1, 0), 2, False, True)],
    "MaxPool3d": [(3,)],
    "MaxUnpool1d": [(3, 2, 1)],
    "MaxUnpool2d": [((3, 2), (2, 2), (1, 0))],
    "MaxUnpool3d": [(3,)],
    "Mish": [(True,)],
    "Module": [()],
    "ModuleDict": [lambda: nn.ModuleDict({"b": nn.Linear(2, 3), "a": nn.ReLU()})],
    "ModuleList": [lambda: nn.ModuleList([nn.Linear(2, 3), nn.ModuleList([nn.Linear(3, 3, bias=False)])]), ()],
    "MultiLabelMarginLoss": [(None, None, "sum")],
    "MultiLabelSoftMarginLoss": [(torch.rand(4), None, None, "sum")],
    "MultiMarginLoss": [(2, 0.5, torch.rand(4), None, None, "sum")],
    "MultiheadAttention": [
        (8, 2, 0.1, False, True, True, 5, 6, True),
        (8, 4),
        (8, 2, 0.1, True, False, False, 8, 8, False),
    ],
    "NLLLoss": [(torch.rand(4), None, 2, None, "sum")],
    "PReLU": [(4, 0.1)],
    "PairwiseDistance": [(1.0, 1e-4, True)],
    "ParameterDict": [
        lambda: nn.ParameterDict({"b": nn.Parameter(torch.rand(3)), "a": nn.Parameter(torch.rand(2).half())})
    ],
    "ParameterList": [
        lambda: nn.ParameterList([nn.Parameter(torch.rand(2, 2)), torch.rand(3), nn.Parameter(torch.rand(1))])
    ],
    "PixelShuffle": [(3,)],
    "PixelUnshuffle": [(3,)],
    "PoissonNLLLoss": [(False, True, None, 1e-4, None, "sum")],
    "RMSNorm": [((3, 4), 1e-3, False), (4,)],
    "RNN": [(3, 4, 2, "relu", False, True, 0.2, True)],
    "RNNCell": [(3, 4, False, "relu")],
    "RReLU": [(0.2, 0.4, True)],
    "ReLU": [(True,)],
    "ReLU6": [(True,)],
    "ReflectionPad1d": [(2,)],
    "ReflectionPad2d": [((1, 2, 3, 4),)],
    "ReflectionPad3d": [(1,)],
    "ReplicationPad1d": [((1, 2),)],
    "ReplicationPad2d": [(2,)],
    "ReplicationPad3d": [(2,)],
    "SELU": [(True,)],
    "Sequential": [
        (nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())),
        lambda: nn.Sequential(torch.nn.modules.container.OrderedDict(second=nn.Linear(2, 3), first=nn.Tanh())),
    ],
    "SiLU": [(True,)],
    "Sigmoid": [()],
    "SmoothL1Loss": [(None, None, "sum", 0.5)],
    "SoftMarginLoss": [(None, None, "sum")],
    "Softmax": [(1,)],
    "Softmax2d": [()],
    "Softmin": [(1,)],
    "Softplus": [(2.0, 10.0)],
    "Softshrink": [(0.7,)],
    "Softsign": [()],
    "Tanh": [()],
    "Tanhshrink": [()],
    "Threshold": [(0.1, 20.0, True)],
    "Transformer": [lambda: nn.Transformer(8, 2, 1, 2, 12, 0.2, functional.gelu, batch_first=True)],
    "TransformerDecoder": [lambda: nn.TransformerDecoder(_decoder_layer(), 2, nn.LayerNorm(8))],
    "TransformerDecoderLayer": [lambda: _decoder_layer(activation="gelu", bias=False), _decoder_layer],
    "TransformerEncoder": [
        lambda: nn.TransformerEncoder(
            _encoder_layer(), 2, nn.LayerNorm(8), enable_nested_tensor=False, mask_check=False
        ),
        lambda: nn.TransformerEncoder(_encoder_layer(), 3),
    ],
    "TransformerEncoderLayer": [
        lambda: _encoder_layer(activation=nn.SiLU(), norm_first=True, layer_norm_eps=1e-3),
        lambda: _encoder_layer(activation=torch.tanh, bias=False),
        _encoder_layer,
    ],
    "TripletMarginLoss": [(0.5, 1.0, 1e-4, True, None, None, "sum")],
    "TripletMarginWithDistanceLoss": [
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=functional.cosine_similarity, margin=0.5, swap=True),
        lambda: nn.TripletMarginWithDistanceLoss(reduction="sum"),
    ],
    "Unflatten": [(1, (2, 3)), (-1, torch.Size([2, 2]))],
    "Unfold": [((2, 3), 1, 0, (2, 1))],
    "Upsample": [((4, 5), None, "bilinear", True), (None, 2.0, "nearest", None, True)],
    "UpsamplingBilinear2d": [(None, 2.0), ((4, 5),)],
    "UpsamplingNearest2d": [(None, (2.0, 3.0))],
    "ZeroPad1d": [((1, 2),)],
    "ZeroPad2d": [(2,)],
    "ZeroPad3d": [((1, 2, 3, 4, 5, 6),)],
}
CASES = [(name, index) for name, cases in LAYERS.items() for index in range(len(cases))]


@pytest.mark.parametrize(("name", "index"), CASES, ids=[f"{name}-{index}" for name, index in CASES])
def test_every_layer_comes_back_with_its_arguments(name: str, index: int, tmp_path: Path) -> None:
    case = LAYERS[name][index]
    layer = case() if callable(case) else getattr(nn, name)(*case)
    loaded = there_and_back(layer, tmp_path)
    assert type(loaded) is type(layer)
    assert_same_state(layer, loaded)


def test_no_public_layer_is_left_out() -> None:
    assert {f"torch.nn.{name}" for name in LAYERS} == set(layers.public())


def test_layers_in_layers_run_to_the_same_bits(tmp_path: Path) -> None:
    x, y = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    model = nn.Transformer(8, 2, 2, 2, 12, batch_first=True).eval()
    assert torch.equal(there_and_back(model, tmp_path)(x, y), model(x, y))
    model = nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True).eval()
    assert torch.equal(there_and_back(model, tmp_path)(x)[0], model(x)[0])
    model = nn.TransformerEncoder(_encoder_layer(), 2).eval()
    assert torch.equal(there_and_back(model, tmp_path)(x), model(x))
