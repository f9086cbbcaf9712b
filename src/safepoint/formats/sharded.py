"""Shards with an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`, as Transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safepoint.errors import CorruptionError
from safepoint.formats.contents import Contents
from safepoint.formats.files import File, Folder, read_json
from safepoint.tree import Leaf, StateTree

_MAX_SHARDS = 10_000


def read(file: File, read_shard: Callable[[File], Contents]) -> Contents:
    """The contents of all shards that an index names, which lie beside it.

    Raises:
        CorruptionError: index and shards contradict each other, or a name leads out of the folder.
        NotFoundError: a shard is missing.
    """
    document = read_json(file)
    table = document.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise CorruptionError(f"{file.path} is no index of shards", file=file.path, expected='"weight_map"')
    names = dict.fromkeys(table.values())
    if len(names) > _MAX_SHARDS:
        raise CorruptionError(f"{file.path} names {len(names)} shards", file=file.path, expected="10,000 at most")
    folder = Folder(Path(file.path).parent)
    shards = {name: read_shard(folder.open(name)) for name in names}
    leaves: dict[str, Leaf] = {}
    for shard, contents in shards.items():
        for name, leaf in contents.tree.leaves.items():
            if table.get(name) != shard:
                where = f"{shard} holds {name[:80]!r}, which the index has elsewhere"
                raise CorruptionError(where, file=contents.location, name=name)
            leaves[name] = leaf
    lost = next((name for name in table if name not in leaves), None)
    if lost is not None:
        where = f"{table[lost]} lacks {lost[:80]!r}, which the index has there"
        raise CorruptionError(where, file=file.path, name=lost)
    metadata: dict[str, Any] = {"shards": list(names)}
    if isinstance(document.get("metadata"), dict):
        metadata["metadata"] = document["metadata"]
    kinds = {contents.kind: contents.framework for contents in shards.values()} or {"safetensors": ""}
    kind, framework = next(iter(kinds.items()))
    title = f"{kind}, {len(names)} shards"
    files = tuple(opened for contents in shards.values() for opened in contents.files)
    return Contents(kind, title, framework, file.path, StateTree(leaves), metadata, files)
