"""Models of `transformers`: by their configuration, without registration or example inputs, and never remote code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.torch_models.models import assert_same_state, in_new_process, there_and_back
from torch import nn

import safepoint
from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError
from safepoint.repository.model_file import write_model_file
from safepoint.tree import Branch, StateTree, Tensor

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 29}


def bert(**options: Any) -> Any:
    return transformers.BertConfig(**SMALL, **options)


def clip() -> Any:
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=SMALL, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config)


def t5() -> Any:
    config = transformers.T5Config(d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, vocab_size=29)
    return transformers.T5ForConditionalGeneration(config)


IDS = torch.arange(12).reshape(2, 6)
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a head": (lambda: transformers.BertForSequenceClassification(bert(num_labels=5)), {"input_ids": IDS}),
    "an argument beside the configuration": (
        lambda: transformers.BertModel(bert(), add_pooling_layer=False),
        {"input_ids": IDS},
    ),
    "another way to attend": (lambda: transformers.BertModel(bert(attn_implementation="eager")), {"input_ids": IDS}),
    "tied embeddings": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=29)),
        {"input_ids": IDS},
    ),
    "rotary embeddings": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=1)),
        {"input_ids": IDS},
    ),
    "an encoder and a decoder": (t5, {"input_ids": IDS, "decoder_input_ids": IDS}),
    "configurations in a configuration": (clip, {"input_ids": IDS, "pixel_values": torch.ones(2, 3, 8, 8)}),
    "BatchNorm": (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
        ),
        {"pixel_values": torch.ones(2, 3, 32, 32)},
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_model_comes_back_by_its_configuration(what: str, tmp_path: Path) -> None:
    make, inputs = MODELS[what]
    torch.manual_seed(0)
    model = make().eval()
    again = there_and_back(model, tmp_path)
    assert type(again) is type(model)
    assert_same_state(model, again)
    assert again.config.to_dict() == model.config.to_dict()
    assert again.config._attn_implementation == model.config._attn_implementation
    with torch.no_grad():
        ours, theirs = model(**inputs).to_tuple(), again(**inputs).to_tuple()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, torch.Tensor))


def test_a_folder_is_what_from_pretrained_reads(tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(bert()).eval()
    safepoint.save_model(model, f"{tmp_path}/model/")
    again, said = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert_same_state(model, again)
    assert all(name.startswith("__safepoint__/") for name in said.pop("unexpected_keys"))  # buffers it makes itself
    assert not any(said.values()), said
    assert type(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model")) is type(model)
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    loaded = safepoint.load_model(tmp_path / "model")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert_same_state(model, loaded)


def test_what_from_pretrained_wrote_is_read_by_a_checkpoint(tmp_path: Path) -> None:
    model = transformers.BertModel(bert())
    model.save_pretrained(tmp_path / "theirs")
    other = transformers.BertModel(bert())
    safepoint.Checkpoint(model=other).restore(tmp_path / "theirs/model.safetensors")
    assert_same_state(model, other)


def test_how_a_model_generates_comes_back(tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=29))
    model.generation_config.max_new_tokens = 5
    model.generation_config.pad_token_id = 7
    again = there_and_back(model.eval(), tmp_path)
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert torch.equal(again.generate(IDS, do_sample=False), model.generate(IDS, do_sample=False))


@safepoint.register
class Classifier(nn.Module):
    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(16, classes)

    def forward(self, ids: Any) -> Any:
        return self.head(self.encoder(input_ids=ids)[0][:, 0])


@safepoint.register
class Own(transformers.BertPreTrainedModel):
    """Of one's own, made as transformers makes its models."""

    def __init__(self, config: Any, classes: int = 3) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, classes)
        self.post_init()

    def forward(self, ids: Any) -> Any:
        return self.head(self.bert(input_ids=ids)[0][:, 0])


@pytest.mark.parametrize(
    "make",
    [lambda: Classifier(transformers.BertModel(bert()), 3), lambda: Own(bert(), classes=4)],
    ids=["a part", "a subclass"],
)
def test_a_model_inside_ones_own_trains_on_as_before(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    again = there_and_back(model, tmp_path)
    assert_same_state(model, again)
    for each in (model, again):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(each.parameters(), 1e-3)
        for _ in range(2):
            each(IDS).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_state(model, again)


WITHOUT = """
import sys
sys.modules["transformers"] = None
import safepoint
try:
    safepoint.load_model(sys.argv[1])
except safepoint.UntrustedError as error:
    print(error)
"""


def test_without_the_library_and_without_a_graph_the_error_says_what_to_install(tmp_path: Path) -> None:
    safepoint.save_model(transformers.BertModel(bert()), tmp_path / "model")
    said = in_new_process(WITHOUT, tmp_path / "model")
    assert "names transformers.BertModel" in said
    assert "install" in said


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Write a file that builds a class from a configuration, and load it."""

    def do(name: Any, config: Any, kind: str = "transformers.BertConfig", **more: Any) -> Any:
        pairs = {"dict": [[key, value] for key, value in config.items()]} if isinstance(config, dict) else config
        node = {"class": name, "arguments": [["config", {"config": [kind, pairs]}]], **more}
        form = {"model": node, "training": True, "other_mode": [], "frozen": [], "ties": []}
        structure = {"kind": "torch", "version": 1, "class": form, "graph": None}
        tree = StateTree({"weight": Tensor.of(np.ones(2, np.float32))}, Branch("torch.module"))
        write_model_file(tmp_path / "model", tree, structure=structure, format="pt")
        return safepoint.load_model(tmp_path / "model")

    return do


@pytest.mark.parametrize(
    "name",
    [
        "transformers.Trainer",
        "transformers.AutoModel",
        "transformers.pipeline",
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "transformers.models.bert.modeling_bert.BertModel",
        "transformers.RwkvModel",
        "transformers.TimmBackbone",
        "transformers.PreTrainedModel",
        "transformers.torch",
        "transformers.__class__",
        "transformers.nothing",
        "transformers.",
    ],
)
def test_what_is_no_public_model_class_is_refused(name: str, load: Callable[..., Any]) -> None:
    with pytest.raises(UntrustedError, match="nothing was imported or run"):
        load(name, {})


REFUSED: dict[str, dict[str, Any]] = {
    "remote code": {"auto_map": {"dict": [["AutoModel", "evil/repo--modeling.Evil"]]}},
    "remote code in a part": {"decoder": {"dict": [["auto_map", {"dict": [["AutoModel", "evil--m.Evil"]]}]]}},
    "remote code in a list": {"parts": [{"dict": [["auto_map", "x"]]}]},
    "trust": {"trust_remote_code": True},
    "a kernel of a hub": {"attn_implementation": "evil/kernel"},
    "a kernel, by the inner name": {"_attn_implementation_internal": "evil/kernel"},
    "a kernel in a part": {"text_config": {"dict": [["attn_implementation", "sdpa"]]}},
    "experts of a hub": {"experts_implementation": "evil/kernel"},
    "another library's weights": {"use_timm_backbone": True},
    "fetched weights": {"use_pretrained_backbone": True},
    "a part that fetches": {"backbone_config": {"dict": [["model_type", "timm_backbone"]]}},
    "quantised weights": {"quantization_config": {"dict": [["quant_method", "gptq"]]}},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_configuration_that_names_code_is_refused(what: str, load: Callable[..., Any]) -> None:
    with pytest.raises(UntrustedError, match="nothing was"):
        load("transformers.BertModel", {**SMALL, **REFUSED[what]})


ODD: dict[str, Any] = {
    "no dictionary": 3,
    "a tensor": {"hidden_size": {"tensor": "weight"}},
    "bytes": {"hidden_size": {"bytes": "AAAA"}},
    "a method": {"__class__": 3},
    "a dtype that is a function": {"dtype": "load"},
    "text for a number": {"hidden_size": "large"},
    "a negative size": {"hidden_size": -4},
    "10**9 layers": {"num_hidden_layers": 10**9},
    "10**12 labels": {"num_labels": 10**12},
    "a layer of 4 TB": {"hidden_size": 2_000_000, "num_attention_heads": 2},
    "heads that do not divide": {"num_attention_heads": 3},
    "an activation that is none": {"hidden_act": "os.system"},
}


@pytest.mark.parametrize("what", ODD)
def test_a_configuration_that_is_none_is_refused(what: str, load: Callable[..., Any]) -> None:
    config = {**SMALL, **ODD[what]} if isinstance(ODD[what], dict) else ODD[what]
    with pytest.raises((CorruptionError, UnsupportedError, safepoint.MismatchError)):
        load("transformers.BertModel", config)


def test_only_a_configuration_is_made_from_one(load: Callable[..., Any]) -> None:
    for kind in ("transformers.BertModel", "torch.nn.Linear", "torch.relu"):
        with pytest.raises((CorruptionError, UntrustedError)):
            load("transformers.BertModel", SMALL, kind)


def test_generation_is_of_models_that_generate(load: Callable[..., Any]) -> None:
    with pytest.raises(UntrustedError):
        load("transformers.BertModel", SMALL, generation={"dict": [["custom_generate", "evil/repo"]]})
    with pytest.raises((CorruptionError, UnsupportedError)):
        load("transformers.BertModel", SMALL, generation=[3])


def test_a_class_of_remote_code_is_no_class_of_the_librarys(tmp_path: Path) -> None:
    kind = type("BertModel", (transformers.BertModel,), {"__module__": "transformers_modules.evil.modeling"})
    with pytest.raises(UnsupportedError, match="were not kept"):
        safepoint.save_model(kind(bert()), tmp_path / "model")
