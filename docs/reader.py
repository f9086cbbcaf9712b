"""Reads safepoint's repositories and model files without safepoint, written from FORMAT.md alone.

python reader.py REPOSITORY [NUMBER]    or    python reader.py MODEL_FILE
"""
# ruff: noqa: ANN001, ANN201, D103, INP001, T201

import base64
import json
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import xxhash


def check(condition, message):
    if not condition:
        raise ValueError(message)


def unseal(path):
    data = path.read_bytes()
    check(data.startswith(b'{"digest":"') and data[75:84] == b'","body":' and data.endswith(b"}\n"), f"{path}: no seal")
    body = json.loads(data[84:-2])  # with BLAKE3 at hand, its digest would be data[11:75]
    check(body["version"] == 1, f"{path}: version {body['version']}")
    return body


def value_of(data):
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    plain = {"int": lambda text: int(text, 16), "float": float, "complex": lambda ab: complex(*map(value_of, ab))}
    return plain[tag](content) if tag in plain else decoded(tag, base64.b64decode(content))


def decoded(kind, raw):
    check(kind in {"int", "bytes", "str"}, f"a value tagged {kind}")
    raw = int.from_bytes(raw, "little", signed=True) if kind == "int" else raw
    return raw.decode("utf-8", "surrogatepass") if kind == "str" else raw


def dtype_of(name):
    void = {"complex32": "V4", "float4_e2m1fn_x2": "V1"}  # bytes only, where no such dtype is known
    return np.dtype(getattr(ml_dtypes, name, void.get(name, name))).newbyteorder("<")


def array_of(tensor, blocks):
    """The tensor whose blocks are (file, offset, length, checksum), each read and checked."""
    dtype, shape = dtype_of(tensor["dtype"]), tensor["shape"]
    lengths = [length for _, _, length, _ in blocks]
    whole = sum(lengths) == math.prod(shape) * dtype.itemsize and all(n == 16 << 20 for n in lengths[:-1])
    check(whole, f"{tensor['name']}: wrong blocks")
    parts = []
    for file, offset, length, checksum in blocks:
        parts.append(read_range(file, offset, length))
        check(xxhash.xxh3_64_hexdigest(parts[-1]) == checksum, f"{tensor['name']} is damaged in {file}")
    return np.frombuffer(b"".join(parts), dtype).reshape(shape)


def newest(root, stem):
    """Of the documents `stem`-<k>.json the one that holds."""
    numbers = [int(path.stem.rpartition("-")[2]) for path in root.glob(f"{stem}-*.json")]
    return unseal(root / f"{stem}-{max(numbers)}.json") if numbers else {}


def now(root, pack, offset, length):
    """Where a block is now: file, offset and length."""
    document = newest(root, f"moved/{pack}")
    for *block, target, there in document.get("blocks", []):
        if block == [offset, length]:
            return now(root, document["packs"][target]["id"], there, length)
    return root / "packs" / f"{pack}.safetensors", offset, length


def read_range(file, offset, length):
    check(offset + length <= file.stat().st_size, f"{file} ends early")
    return np.fromfile(file, np.uint8, length, offset=offset).tobytes()


def read_repository(root, number=None):
    """The leaves of a snapshot (default: the newest) by name: arrays and plain values."""
    number = max(int(path.stem) for path in root.glob("snapshots/[0-9]*.json")) if number is None else number
    snapshot = unseal(root / "snapshots" / f"{number:08d}.json")
    home = (unseal(root / "safepoint.json")["id"], number)
    check((snapshot["repository"], snapshot["number"]) == home, "belongs elsewhere")
    check(not newest(root, f"marks/{number:08d}").get("pruned"), f"snapshot {number} was pruned")
    text = (root / "manifests" / f"{snapshot['manifest']['id']}.json").read_bytes()
    manifest = json.loads(text)  # with BLAKE3 at hand, its digest would be snapshot["manifest"]["digest"]
    packs = [pack["id"] for pack in manifest["packs"]]
    leaves = {name: value_of(value) for name, value in manifest["values"]}
    for tensor in manifest["tensors"]:
        check("codec" not in tensor and len(tensor["shards"]) == 1, f"{tensor['name']}: not in version 1")
        blocks = [(*now(root, packs[p], at, n), xxh) for p, at, n, _, xxh, *_ in tensor["shards"][0]["blocks"]]
        array = array_of(tensor, blocks)
        leaves[tensor["name"]] = decoded(tensor["value"], array.tobytes()) if "value" in tensor else array
    return leaves


def read_model(path):
    """The leaves of a whole-model file by name, and how to rebuild the model."""
    header_bytes = int.from_bytes(read_range(path, 0, 8), "little")
    header = json.loads(read_range(path, 8, header_bytes))
    document = json.loads(header["__metadata__"]["safepoint"])
    check(document["version"] == 1, f"version {document['version']}")
    leaves = {name: value_of(value) for name, value in document["values"]}
    for tensor in document["tensors"]:
        blocks = [(path, 8 + header_bytes + offset, n, xxh) for offset, n, _, xxh in tensor["blocks"]]
        leaves[tensor["name"]] = array_of(tensor, blocks)
    return leaves, document["structure"]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    found = read_repository(where, *map(int, sys.argv[2:])) if where.is_dir() else read_model(where)[0]
    for name, leaf in found.items():
        print(name, f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, np.ndarray) else repr(leaf)[:60], sep="\t")
