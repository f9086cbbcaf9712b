"""Rows that the disk limits: durable saves, restores, and opening."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import Peer, array_peers, flat, torch_peers
from results import Row
from state import adamw, gpt2, remember, seconds

import safepoint
from safepoint.cli.machine import forget, page_aligned, peak_bytes, raw_read, raw_write, reset_peak, sync
from safepoint.store import spare_memory

BLOCKS_OF_8_GB = 88


def durable_save(root: Path, rounds: int, blocks: int) -> list[Row]:
    """Every byte hashed and on the disk, against the raw direct write of the same bytes and the peers."""
    model = gpt2(blocks=blocks)
    optimizer = adamw(model)
    arrays = {name: tensor.numpy() for name, tensor in flat(model, optimizer).items()}
    size = sum(array.nbytes for array in arrays.values())
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    memory = page_aligned(16 << 20)
    raw = root / "raw"
    ours = Peer("safepoint", root / "run", lambda: checkpoint.save(root / "run"), lambda: None)
    others = torch_peers(root, model, optimizer) + (array_peers(root, arrays) if blocks <= 12 else [])
    times: dict[str, list[float]] = {}
    added: dict[str, int] = {}
    for number in range(rounds):
        order = [ours, *others]
        for peer in order[number % len(order) :] + order[: number % len(order)]:  # nobody is always first
            for path in (raw, *(other.path for other in order)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            if peer is ours:
                times.setdefault("raw", []).append(seconds(lambda: raw_write(raw, size, memory)))
                raw.unlink()
            held = reset_peak()
            times.setdefault(peer.name, []).append(seconds(peer.save))
            added[peer.name] = max(added.get(peer.name, 0), peak_bytes() - held)
    mine = times["safepoint"]
    rows = [Row("raw direct write: the disk", times["raw"], num_bytes=size)]
    rows.append(
        Row(
            "durable save, hashed", mine, times["raw"], 1.15, note="raw", num_bytes=size, added_bytes=added["safepoint"]
        )
    )
    for peer in others:
        theirs = times[peer.name]
        rows.append(Row(f"{peer.name}, durable save", theirs, num_bytes=size, added_bytes=added[peer.name]))
        rows.append(Row(f"durable save, against {peer.name}", mine, theirs, 1.0, note=peer.name))
    rows.append(Row("memory added by a durable save", [added["safepoint"] / 1e6], goal=128, unit="MB"))
    return rows


def restore(root: Path, rounds: int, blocks: int) -> list[Row]:
    """Verified restores, cold and warm, against the raw read and the peers."""
    model = gpt2(blocks=blocks)
    optimizer = adamw(model)
    size = sum(tensor.nbytes for tensor in flat(model, optimizer).values())
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.save(root / "run")
    others = {peer.name: peer for peer in torch_peers(root, model, optimizer)}
    for peer in others.values():
        peer.save()
    memory = page_aligned(32 << 20)
    (pack,) = (root / "run" / "packs").iterdir()

    def resume() -> None:
        manager = safepoint.CheckpointManager(checkpoint, root / "run", random=False)
        manager.resume()
        manager.close()

    ways: dict[str, tuple[Path, Any]] = {
        "raw": (pack, lambda: raw_read(pack, memory, direct=True)),
        "default": (root / "run", lambda: checkpoint.restore(root / "run")),
        "in place": (root / "run", lambda: checkpoint.restore(root / "run", in_place=True)),
        "resume": (root / "run", resume),
        **{name: (peer.path, peer.load) for name, peer in others.items()},
    }
    cold: dict[str, list[float]] = {}
    warm: dict[str, list[float]] = {}
    checkpoint.restore(root / "run")
    added: dict[str, int] = {}
    for number in range(rounds):
        order = list(ways)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            path, load = ways[name]
            forget(path)
            held = reset_peak()
            cold.setdefault(name, []).append(seconds(load))
            added[name] = max(added.get(name, 0), peak_bytes() - held)
            remember(path)
            warm.setdefault(name, []).append(seconds(load))
    copied = "safetensors + copy (nothing verified)"
    whole = 1.4 if 2 * size <= spare_memory() else 2.2  # where what was live cannot be kept, everything is read twice

    def read(title: str, way: str, *base: Any, note: str = "raw") -> Row:
        times = cold if title.startswith("cold") else warm
        return Row(title, times[way], *base, note=note if base else "", num_bytes=size, added_bytes=added[way])

    return [
        read("cold: raw direct read, the disk", "raw"),
        read("cold restore, verified, all or nothing", "default", cold["raw"], whole),
        read("cold resume, verified, all or nothing", "resume", cold["raw"], whole),
        read("cold restore, in_place=True", "in place", cold["raw"], 1.15),
        *(read(f"cold: {name}", name) for name in others),
        *(read(f"cold restore, against {name}", "default", cold[name], 1.0, note=name) for name in others),
        *(read(f"warm: {name}", name) for name in others),
        read("warm restore, verified", "default", warm["safetensors"], 2.0, note=copied),
        read("warm restore, in_place=True", "in place", warm["safetensors"], 1.3, note=copied),
        read("warm restore, against torch.load", "default", warm["torch.save"], 1.0, note="torch.load"),
        Row("memory added by restore(in_place=True)", [added["in place"] / 1e6], goal=128, unit="MB"),
    ]


_OPEN = """
import json, sys, time
import numpy, safepoint
safepoint.open
def bytes_read():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
before, start = bytes_read(), time.perf_counter()
with safepoint.open(sys.argv[1]) as tensors:
    name = min(tensors.specs, key=lambda name: tensors.specs[name].num_bytes)
    size = tensors[name][...].nbytes
print(json.dumps({"seconds": time.perf_counter() - start, "read": bytes_read() - before, "size": size}))
"""


def open_first_tensor(root: Path, rounds: int, blocks: int) -> list[Row]:
    """From `safepoint.open` to the bytes of a small tensor, in a new process; files are warm."""
    model = gpt2(blocks=blocks)
    optimizer = adamw(model)
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.save(root / "run")
    peer = torch_peers(root, model, optimizer)[0]
    peer.save()
    sync(peer.path)
    rows = []
    for title, path in (("a repository", root / "run"), ("a safetensors file", peer.path)):
        remember(path)
        done = [
            subprocess.run([sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=True)
            for _ in range(rounds)
        ]
        found = [json.loads(one.stdout.splitlines()[-1]) for one in done]
        rows.append(Row(f"open {title}, first tensor", [one["seconds"] * 1e3 for one in found], goal=20, unit="ms"))
        rows.append(Row(f"bytes read for it ({title})", [one["read"] / 1e6 for one in found], unit="MB"))
    return rows
