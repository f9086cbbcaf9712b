"""Each example, killed by SIGKILL twenty times, lives exactly the run that was never killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.examples.proof import EXAMPLES, prove, zygote


@pytest.mark.parametrize("style", ["torch_loop", "jax_optax", "flax_nnx", "equinox_loop", "keras_loop"])
def test_a_loop_killed_twenty_times_is_the_loop_that_never_was(style: str, tmp_path: Path) -> None:
    with zygote(tmp_path, EXAMPLES / f"{style}.py") as process:
        done = prove(process, "runs/x", kills=20, steps=90, every=3)
    assert done.kills == 20
    assert done.in_flight > 0, "no kill fell between staging and commit"
    assert done.tensors > 10
