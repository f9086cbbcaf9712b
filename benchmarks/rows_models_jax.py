"""Rows of whole JAX models: an Equinox MLP by its class and by its graph, beside Equinox's serialisation and Orbax."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from peers import sync
from results import Row
from state import seconds

import safepoint

_WIDTH = 1024


def jax_models(root: Path, rounds: int, blocks: int) -> list[Row]:
    """Saving and loading a model of 4.2 MB a block, in a process that has JAX and Equinox loaded."""
    import equinox as eqx
    import jax

    model: Any = eqx.nn.MLP(_WIDTH, _WIDTH, _WIDTH, blocks, key=jax.random.key(0))
    sample = jax.numpy.ones(_WIDTH)
    template = eqx.filter_eval_shape(lambda: eqx.nn.MLP(_WIDTH, _WIDTH, _WIDTH, blocks, key=jax.random.key(0)))
    arrays = eqx.filter(model, eqx.is_array)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    names = ("class", "graph", "equinox", "orbax")
    saves: dict[str, list[float]] = {name: [] for name in names}
    loads: dict[str, list[float]] = {name: [] for name in names}
    orbax = _orbax(root, arrays)

    def save_equinox() -> None:
        eqx.tree_serialise_leaves(root / "model.eqx", model)
        sync(root / "model.eqx")

    def graph() -> None:
        jax.block_until_ready(dict(safepoint.load_model(root / "graph", form="graph").params))

    steps = {
        "class": (
            lambda: safepoint.save_model(model, root / "class"),
            lambda: jax.block_until_ready(eqx.filter(safepoint.load_model(root / "class"), eqx.is_array)),
        ),
        "graph": (lambda: safepoint.save_model(model, root / "graph", example_inputs=(sample,)), graph),
        "equinox": (
            save_equinox,
            lambda: jax.block_until_ready(
                eqx.filter(eqx.tree_deserialise_leaves(root / "model.eqx", template), eqx.is_array)
            ),
        ),
        **({"orbax": orbax} if orbax else {}),
    }
    for save, load in steps.values():  # once for whatever is compiled, imported or allocated only once
        save()
        load()
    for _ in range(rounds):
        for name, (save, load) in steps.items():
            saves[name].append(seconds(save))
            loads[name].append(seconds(load))
    rows = []
    for form in ("class", "graph"):
        for peer in ("equinox", "orbax"):
            if peer in steps:
                what = f"whole JAX model, {num_bytes / 1e6:.0f} MB, by its {form}"
                rows.append(Row(f"{what}, save", saves[form], saves[peer], note=peer, num_bytes=num_bytes))
                rows.append(Row(f"{what}, load", loads[form], loads[peer], note=peer, num_bytes=num_bytes))
    return rows


def _orbax(root: Path, arrays: Any) -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        print("orbax is not installed: left out", file=sys.stderr)
        return None
    import jax

    checkpointer = ocp.StandardCheckpointer()
    folder = (root / "model.orbax").absolute()

    def save() -> None:
        checkpointer.save(folder, jax.tree.leaves(arrays), force=True)
        checkpointer.wait_until_finished()
        sync(folder)

    return save, lambda: jax.block_until_ready(checkpointer.restore(folder, jax.tree.leaves(arrays)))
