"""`safepoint show`."""

from __future__ import annotations

import pytest
from tests.cli.conftest import tree

from safepoint.repository import Repository, write_model_file

LAYERS = [
    {"class_name": "InputLayer", "config": {"name": "pixels", "batch_shape": [None, 64]}},
    {
        "class_name": "Sequential",
        "config": {
            "name": "inner",
            "layers": [{"class_name": "Dense", "config": {"name": "dense", "units": 10, "activation": "relu"}}],
        },
    },
]
STRUCTURE = {
    "kind": "keras",
    "keras_version": "3.15.1",
    "backend": "jax",
    "config": {
        "class_name": "Functional",
        "config": {"name": "digits", "layers": LAYERS},
        "compile_config": {"optimizer": {"class_name": "Adam", "config": {}}, "loss": "mse"},
    },
}


def test_a_tree_of_names_with_types_shapes_and_sizes(run: Repository, safepoint) -> None:
    result = safepoint("show", "runs/digits")
    rows = [" ".join(line.split()) for line in result.out.splitlines()]
    assert rows[0] == "runs/digits@id:4 · step 49 · 4 tensors · 42.6 kB"
    assert "metrics loss 2.25, accuracy 0.5" in rows
    assert "config lr 0.001, layers [1, 2]" in rows
    assert "made with python 3.11, torch 2.13" in rows
    assert rows[rows.index("model 22.6 kB") + 1 :][:4] == [
        "├ encoder 20.2 kB",
        "│ ├ weight float32 [100, 50] 20.0 kB",
        "│ └ bias float32 [50] 200 B",
        "└ frozen int64 [300] 2.4 kB",
    ]
    assert "state/patience int 3" in rows
    assert "history/loss 50 values 1, 0.5 ... 0.02" in rows
    assert max(map(len, result.out.splitlines())) <= 80


def test_json_is_one_document_with_these_fields(run: Repository, safepoint) -> None:
    document = safepoint("show", "runs/digits@best", "--json").json
    assert list(document) == [
        "kind", "repository", "reference", "number", "step", "time", "parent", "tags", "metrics", "num_tensors",
        "num_bytes", "written_bytes", "verified", "pruned", "config", "environment", "manifest", "tensors", "values",
    ]  # fmt: skip
    assert (document["kind"], document["number"]) == ("snapshot", 2)
    assert document["config"] == {"lr": 1e-3, "layers": [1, 2]}
    assert document["tensors"][0] == {
        "name": "model/encoder.weight", "dtype": "float32", "shape": [100, 50], "num_bytes": 20_000
    }  # fmt: skip
    assert {"name": "state/patience", "value": 3} in document["values"]


@pytest.mark.parametrize("reference, number", [("19", 1), ("id:3", 3), ("best:loss", 2), ("latest", 4), ("v1", 0)])
def test_every_reference_works(run: Repository, safepoint, reference: str, number: int) -> None:
    run.tag("id:0", "v1")
    assert safepoint("show", f"runs/digits@{reference}", "--json").json["number"] == number


def test_names_choose(run: Repository, safepoint) -> None:
    assert safepoint("show", "runs/digits", "model/*bias", "state", "-q").out == "model/encoder.bias\nstate/patience\n"
    result = safepoint("show", "runs/digits", "model/encodr.bias")
    assert result.code == 4
    assert "did you mean 'model/encoder.bias'?" in result.err


def test_depth_sums_up(run: Repository, safepoint) -> None:
    rows = [" ".join(line.split()) for line in safepoint("show", "runs/digits", "--depth", 1).out.splitlines()]
    assert "model 3 tensors 22.6 kB" in rows
    assert not any("encoder.weight" in row and row.startswith("├") for row in rows)


def test_a_reference_that_is_not_there_says_what_is(run: Repository, safepoint) -> None:
    result = safepoint("show", "runs/digits@1000")
    assert result.code == 10
    assert "steps 9, 19, 29, 39, 49" in result.err


def test_a_model_file(run: Repository, safepoint) -> None:
    write_model_file("digits.model", tree(1), structure=STRUCTURE, format="keras")
    result = safepoint("show", "digits.model")
    rows = [" ".join(line.split()) for line in result.out.splitlines()]
    assert rows[0].startswith("digits.model · Keras model · 4 tensors · ")
    assert "written by Keras 3.15.1 on jax" in rows
    assert "optimizer Adam" in rows
    assert "pixels InputLayer batch_shape=(None, 64)" in rows
    assert "inner/dense Dense units=10, activation=relu" in rows
    assert max(map(len, result.out.splitlines())) <= 80
    document = safepoint("show", "digits.model", "--json").json
    assert list(document) == [
        "kind", "path", "format", "file_bytes", "num_tensors", "num_bytes", "summary", "layers", "structure",
        "tensors", "values",
    ]  # fmt: skip
    assert document["layers"][1] == {"name": "inner/dense", "class": "Dense", "details": "units=10, activation=relu"}


def test_a_folder_with_a_model_in_it(run: Repository, safepoint) -> None:
    write_model_file("digits/model.safetensors", tree(1), structure=STRUCTURE, format="keras")
    assert safepoint("show", "digits", "--json").json["path"] == "digits/model.safetensors"


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"config": []},
        {"config": {"class_name": {"a": 1}, "config": {"layers": [None, 3, {"config": {"name": ["x"] * 99}}]}}},
        {"config": {"config": {"layers": [{"config": {"layers": [{"config": {"layers": 5}}]}}]}, "compile_config": 3}},
    ],
)
def test_a_structure_that_is_nonsense_is_shown_as_far_as_it_goes(run: Repository, safepoint, structure) -> None:
    write_model_file("odd.model", tree(1), structure=structure, format="keras")
    for arguments in ([], ["--json"]):
        result = safepoint("show", "odd.model", *arguments)
        assert result.code == 0, result.err


def test_a_tensor_that_is_the_whole_tree_has_a_row(run: Repository, safepoint) -> None:
    run.commit(tree(0, {"": 1.5}))
    assert "(the whole)" in safepoint("show", "runs/digits").out


def test_a_file_of_no_format_is_refused_with_a_hint(run: Repository, safepoint) -> None:
    with open("other", "wb") as file:  # noqa: PTH123
        file.write(bytes(range(128, 256)) * 4)
    result = safepoint("show", "other")
    assert result.code == 7
    assert "next:" in result.err
