"""How `verify` checks a whole-model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safepoint.repository import Damage, Progress
    from safepoint.repository.stored import Block


def verify_file(path: Path, progress: Progress | None) -> tuple[int, list[Damage]]:
    """Read every block of a model file and compare digests; returns the bytes read and what is damaged.

    Raises:
        CorruptionError: the header is damaged.
    """
    import numpy as np

    from safepoint.codec import digest
    from safepoint.errors import CorruptionError
    from safepoint.repository import read_model_file
    from safepoint.repository.survey import damage_of

    model = read_model_file(path)
    places: dict[int, tuple[Block, str, int]] = {}  # tied weights are the same blocks
    for name, stored in model.stored.items():
        start = 0
        for block in stored.blocks:
            places.setdefault(block.offset, (block, name, start))
            start += block.length
    total = sum(block.length for block, _, _ in places.values())
    done, damage = 0, []
    with path.open("rb") as file:
        for offset, (block, name, start) in sorted(places.items()):
            file.seek(offset)
            data = np.frombuffer(file.read(block.length), np.uint8)
            if len(data) != block.length or digest(data) != block.digest:
                span = (start, start + block.length)
                message = f"{name}, bytes {span[0]}-{span[1]}, is damaged in {path}"
                error = CorruptionError(message, file=path.name, name=name, span=span)
                damage.append(damage_of((), error, model.stored[name].spec))
            done += block.length
            if progress is not None:
                progress(done, total)
    return done, damage
