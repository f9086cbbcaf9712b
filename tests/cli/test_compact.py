"""`safepoint compact`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.cli.conftest import tree

from safepoint.repository import Repository
from safepoint.tree import Tensor


def test_space_comes_back(run: Repository, safepoint) -> None:
    assert safepoint("compact", "runs/digits").out == "nothing to compact\n"
    assert safepoint("compact", "runs/digits", "--json").json == {
        "repository": "runs/digits", "packs": 0, "moved_bytes": 0, "freed_bytes": 0,
    }  # fmt: skip
    kept = Tensor.of(np.arange(20_000))
    run.commit(tree(1, {"kept": kept, "gone": Tensor.of(np.arange(30_000))}), step=100)
    run.commit(tree(2, {"kept": kept}), step=101)
    run.delete("100")
    result = safepoint("compact", "runs/digits")
    assert result.code == 0
    assert result.out.startswith("1 pack written again, 183 kB moved; ")
    assert result.out.endswith("freed\n")
    assert safepoint("verify", "runs/digits").code == 0


def test_while_it_is_read_the_space_stays(run: Repository, safepoint) -> None:
    kept = Tensor.of(np.arange(20_000))
    run.commit(tree(1, {"kept": kept, "gone": Tensor.of(np.arange(30_000))}), step=100)
    run.commit(tree(2, {"kept": kept}), step=101)
    run.delete("100")
    with Repository(Path("runs/digits")).reading():
        result = safepoint("compact", "runs/digits")
        assert "free after: safepoint collect runs/digits" in " ".join(result.out.split())
    assert "freed" in safepoint("collect", "runs/digits").out
