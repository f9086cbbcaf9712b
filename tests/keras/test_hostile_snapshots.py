"""A snapshot from a stranger: no value in it makes a layer open or write a path."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import pytest

import safepoint
from safepoint.repository import Repository
from safepoint.tree import StateTree


def test_a_vocabulary_that_is_a_path_is_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password\n")
    model = keras.Sequential(
        [keras.layers.Input((1,), dtype="string"), keras.layers.StringLookup(vocabulary=["a", "b"])]
    )
    tree = safepoint.Checkpoint(model=model).capture()
    name = next(name for name in tree.leaves if name.endswith("vocabulary"))
    hostile = {**tree.leaves, name: json.dumps({"vocabulary": str(secret)})}
    Repository(tmp_path / "run").commit(StateTree(hostile, tree.skeleton))
    before = model.layers[-1].get_vocabulary()
    with pytest.raises(safepoint.UntrustedError, match="nothing was opened"):
        safepoint.Checkpoint(model=model).restore(tmp_path / "run")
    assert model.layers[-1].get_vocabulary() == before
