"""Repositories that strangers made: other things in place of files, documents that contradict each other, cycles.

Every attack says what it does. None may hang, run, or reach a file elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.watching import watched

import safepoint
from safepoint.codec import digest, seal
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository import Repository

STATE = {"w": np.arange(600, dtype=np.float32), "n": 3}


def use(root: Path) -> None:
    """All ways in which a user looks at and loads what is there."""
    repository = Repository(root)
    state = {"w": np.zeros(600, np.float32), "n": 0}
    safepoint.Checkpoint(state=state).restore(root)
    assert state["w"].tobytes() == STATE["w"].tobytes()
    repository.snapshots  # noqa: B018
    for damage in repository.verify().damage:
        raise CorruptionError(damage.message, file=damage.file)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original") / "run"
    for _ in range(2):
        safepoint.Checkpoint(state=dict(STATE)).save(root)
    Repository(root).tag("id:1", "kept")
    use(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def needed(root: Path) -> dict[str, Path]:
    """The files that the newest snapshot needs."""
    snapshot = Repository(root).resolve()
    manifest = Repository(root).manifest(snapshot)
    (pack,) = manifest.packs
    return {
        "format": root / "safepoint.json", "snapshot": root / "snapshots/00000001.json",
        "mark": root / "marks" / max(path.name for path in (root / "marks").iterdir()),
        "manifest": root / "manifests" / f"{snapshot.manifest.id}.json", "pack": root / "packs" / f"{pack}.safetensors",
    }  # fmt: skip


def a_link(path: Path, secret: Path) -> None:
    shutil.move(path, secret)
    path.symlink_to(secret)


def a_fifo(path: Path, _secret: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path, _secret: Path) -> None:
    path.unlink()
    path.mkdir()


def a_socket(path: Path, _secret: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a name of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def a_device(path: Path, _secret: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("which", ["format", "snapshot", "mark", "manifest", "pack"])
@pytest.mark.parametrize("instead", [a_link, a_fifo, a_folder, a_socket, a_device])
def test_anything_but_a_file_is_refused_and_never_waited_for(
    instead: Callable[[Path, Path], None], which: str, root: Path, tmp_path: Path
) -> None:
    path = needed(root)[which]
    instead(path, tmp_path / "secret")
    with watched(root.parent, most_seconds=1), pytest.raises(CorruptionError) as caught:
        use(root)
    assert caught.value.file == str(path.relative_to(root))


# -- documents that are sealed rightly, and lie ----------------------------------------------------------------------


def change_body(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_bytes())["body"]
    change(body)
    path.write_bytes(seal(json.dumps(body).encode()))


def change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The snapshot and its signature say that this is right."""
    paths = needed(root)
    body = json.loads(paths["manifest"].read_bytes())
    change(body)
    data = json.dumps(body).encode()
    paths["manifest"].write_bytes(data)
    change_body(paths["snapshot"], lambda b: b["manifest"].update(num_bytes=len(data), digest=digest(data)))


def tensor(body: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in body["tensors"] if item["name"] == "state/w")


def block(body: dict[str, Any]) -> list[Any]:
    return tensor(body)["shards"][0]["blocks"][0]


def claim_petabyte(body: dict[str, Any]) -> None:
    size = 1 << 50
    item = tensor(body)
    item["shape"] = item["shards"][0]["shape"] = [size // 4]
    item["shards"][0]["blocks"] = [[0, 0, 16 << 20, *block(body)[3:]]] * 1000
    body["packs"][0]["num_bytes"] = size


def nested(depth: int) -> Any:
    node: Any = ["n"]
    for _ in range(depth):
        node = {"kind": "list", "children": [node]}
    return node


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a block behind the end of its pack": lambda b: block(b).__setitem__(1, 10**9),
    "a block before the beginning": lambda b: block(b).__setitem__(1, -4096),
    "a block of another length": lambda b: block(b).__setitem__(2, 4),
    "a block in a pack that is not listed": lambda b: block(b).__setitem__(0, 7),
    "a petabyte of blocks": claim_petabyte,
    "a pack called ../../secret": lambda b: b["packs"][0].update(id="../../secret"),
    "a pack called like a path": lambda b: b["packs"][0].update(id="/etc/passwd"),
    "a pack that does not exist": lambda b: b["packs"][0].update(id="0" * 24),
    "a pack that is longer than its file": lambda b: b["packs"][0].update(num_bytes=1 << 40),
    "a name with a NUL": lambda b: tensor(b).update(name="state/w\0"),
    "a name that turns the text around": lambda b: tensor(b).update(name="state/\u202ew"),
    "a name of a megabyte": lambda b: tensor(b).update(name="w" * 1_000_000),
    "a name twice": lambda b: b["tensors"].append(tensor(b)),
    "a dtype that nobody has": lambda b: tensor(b).update(dtype="object"),
    "a negative shape": lambda b: tensor(b).update(shape=[-600]),
    "a rank of 1,000": lambda b: tensor(b).update(shape=[1] * 1000),
    "no shard": lambda b: tensor(b).update(shards=[]),
    "no block": lambda b: tensor(b)["shards"][0].update(blocks=[]),
    "a codec": lambda b: tensor(b).update(codec="pickle"),
    "a skeleton of 10,000 levels": lambda b: b.update(skeleton=nested(400)),
    "a skeleton of another kind": lambda b: b.update(skeleton={"kind": 3}),
    "a value with a class in it": lambda b: b.update(values=[["n", {"py/object": "os.system"}]]),
    "a checksum that is no text": lambda b: block(b).__setitem__(4, 7),
    "version 999": lambda b: b.update(version=999),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_a_manifest_that_lies_is_refused(attack: str, root: Path) -> None:
    change_manifest(root, MANIFESTS[attack])
    with watched(root.parent, most_seconds=1), pytest.raises((CorruptionError, UnsupportedError)):
        use(root)


SNAPSHOTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "its own parent": lambda b: b.update(parent=1),
    "a parent that comes later": lambda b: b.update(parent=2**40),
    "another number": lambda b: b.update(number=0),
    "another repository": lambda b: b.update(repository="0" * 32),
    "version 999": lambda b: b.update(version=999),
    "a manifest called ../../secret": lambda b: b["manifest"].update(id="../../secret"),
    "a manifest of an exabyte": lambda b: b["manifest"].update(num_bytes=1 << 60, digest="0" * 64),
    "a time that never was": lambda b: b.update(time="2030-02-31T00:00:00+00:00"),
    "a config of 200 levels": lambda b: b.update(config=_config(200)),
    "a step that is text": lambda b: b.update(step="1; import os"),
    "metrics that are no numbers": lambda b: b.update(metrics=[["loss", {"bytes": "AAAA"}]]),
}


def _config(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"list": [value]}
    return value


@pytest.mark.parametrize("attack", SNAPSHOTS)
def test_a_snapshot_that_lies_is_refused(attack: str, root: Path) -> None:
    path = needed(root)["snapshot"]
    for mark in (root / "marks").iterdir():
        mark.unlink()
    change_body(path, SNAPSHOTS[attack])
    with watched(root.parent, most_seconds=1), pytest.raises((CorruptionError, UnsupportedError)):
        use(root)


def test_a_feature_that_this_version_does_not_know_is_not_written_over(root: Path) -> None:
    (root / "features").mkdir()
    (root / "features" / "later.json").write_bytes(b"{}")
    with pytest.raises(UnsupportedError, match="later"):
        safepoint.Checkpoint(state=dict(STATE)).save(root)


def test_hundreds_of_strange_files_cost_little(root: Path) -> None:
    for number in range(300):
        (root / "packs" / f".tmp-{number}").touch()
    with watched(root.parent, most_seconds=1):
        use(root)
