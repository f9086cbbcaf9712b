"""Each parser of untrusted bytes as a function of bytes, what it begins from, and what must hold for any bytes.

Bytes are taken, or refused by an error of safepoint's own; of safetensors, nothing is taken that `safetensors` refuses.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.attacks import test_gguf, test_numpy_files, test_onnx, test_pytorch, test_tensorflow
from tests.attacks.test_distributed import metadata
from tests.attacks.test_headers import ATTACKS, file, one
from tests.attacks.watching import read_all
from tests.crash.scenario import content_of, tree_of
from tests.parsers import test_hdf5_texts

from safepoint.codec import digest, read_header, seal
from safepoint.codec.hdf5_texts import texts_of
from safepoint.errors import SafepointError
from safepoint.repository import Repository, read_model_file, write_model_file
from safepoint.store import MemoryStore

MEMORY = Path("/dev/shm")
MOST_BYTES = 4096
CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        parse: bytes; raises `SafepointError` for what it refuses.
        seeds: what is right, or nearly.
    """

    parse: Callable[[bytes], object]
    seeds: list[bytes]

    def check(self, data: bytes) -> bool:
        """Whether it was taken; any other error than ours is the finding."""
        try:
            self.parse(data)
        except SafepointError as error:
            str(error)
            return False
        return True


def _folder() -> Path:
    return Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))


_HERE = _folder()
atexit.register(shutil.rmtree, _HERE, ignore_errors=True)


def opened(suffix: str) -> Callable[[bytes], object]:
    """What `safepoint.open` makes of a file with these bytes, all tensors read."""

    def parse(data: bytes) -> None:
        path = _HERE / f"x{suffix}"
        path.write_bytes(data)
        read_all(path)

    return parse


def header(data: bytes) -> None:
    """Beside `safetensors` itself, where it is installed."""
    read_header(lambda start, length: data[start : start + length], len(data), file="fuzz")
    with contextlib.suppress(ImportError):
        import safetensors

        safetensors.deserialize(data)


def pickled(data: bytes) -> None:
    read_all(test_pytorch.archive(data, _HERE / "x.pt"))


def hdf5_texts(data: bytes) -> None:
    """From an object's header at the beginning of the file."""
    texts_of(lambda start, length: data[start : start + length], len(data), 0, {"a", "b"}, path="fuzz")


def tensorflow_table(data: bytes) -> None:
    read_all(test_tensorflow.written(_HERE / "tf", data))


def tensorflow_entry(data: bytes) -> None:
    """A record behind right checksums."""
    index = test_tensorflow.table([test_tensorflow.HEADER, (b"w", data)])
    read_all(test_tensorflow.written(_HERE / "tf", index))


def distributed(data: bytes) -> None:
    place = _HERE / "dcp"
    place.mkdir(exist_ok=True)
    if not (place / "__0_0.distcp").exists():
        _part(place)
    (place / ".metadata").write_bytes(data)
    read_all(place)


def _part(place: Path) -> Path:
    body = test_pytorch.proto(test_pytorch.tensor([4], [1]))
    return test_pytorch.archive(body, place / "__0_0.distcp")


def _repository() -> dict[str, bytes]:
    store = MemoryStore()
    Repository(store).commit(tree_of(content_of(1, size=20) | {"text": "short"}), metrics={"loss": 0.5})
    Repository(store).tag("latest", "kept")
    return dict(store.files)


_FILES = _repository()


def _use(files: dict[str, bytes]) -> None:
    store = MemoryStore()
    store.files = files
    repository = Repository(store)
    repository.history()
    manifest = repository.manifest(repository.resolve("id:0"))
    manifest.load(manifest.tree.leaves)


def sealed(name: str) -> Callable[[bytes], object]:
    """A document changed by somebody who knows how to seal."""
    return lambda data: _use({**_FILES, name: seal(data)})


def manifest(data: bytes) -> None:
    (name,) = (name for name in _FILES if name.startswith("manifests/"))
    old = _body("snapshots/00000000.json")
    was = _FILES[name]
    snapshot = old.replace(digest(was).encode(), digest(data).encode())
    snapshot = snapshot.replace(f'"num_bytes":{len(was)}'.encode(), f'"num_bytes":{len(data)}'.encode())
    _use({**_FILES, name: data, "snapshots/00000000.json": seal(snapshot)})


def _body(name: str) -> bytes:
    data = _FILES[name]
    return data[data.index(b'"body":') + 7 : -2]


def model_file(data: bytes) -> None:
    path = _HERE / "model"
    path.write_bytes(data)
    read_model_file(path).load()


def _model() -> bytes:
    write_model_file(_HERE / "seed", tree_of({"w": np.arange(5), "n": 1}), structure={"a": [1]}, format="test")
    return (_HERE / "seed").read_bytes()


def _npy() -> bytes:
    np.save(_HERE / "seed.npy", np.arange(6.0).reshape(2, 3))
    return (_HERE / "seed.npy").read_bytes()


def _npz() -> bytes:
    np.savez(_HERE / "seed.npz", a=np.arange(3), b=np.ones(2))
    return (_HERE / "seed.npz").read_bytes()


def _manifest() -> bytes:
    return next(data for name, data in _FILES.items() if name.startswith("manifests/"))


def _small(*seeds: bytes) -> list[bytes]:
    """Those that libFuzzer takes whole."""
    return [seed for seed in seeds if len(seed) < MOST_BYTES]


def _mark() -> str:
    return next(name for name in _FILES if name.startswith("marks/"))


PARSERS: dict[str, Parser] = {
    "safetensors-header": Parser(
        header, [file(one(), bytes(16)), *(data for data, _ in ATTACKS.values() if len(data) < 1000)]
    ),
    "pickle": Parser(
        pickled,
        [
            test_pytorch.proto(test_pytorch.tensor([4], [1])),
            *_small(*test_pytorch.CALLS.values(), *test_pytorch.STREAMS.values()),
        ],
    ),
    "npy": Parser(opened(".npy"), [_npy(), *_small(*(data for data, _ in test_numpy_files.FILES.values()))]),
    "npz": Parser(opened(".npz"), [_npz()]),
    "gguf": Parser(opened(".gguf"), [test_gguf.gguf([], [test_gguf.tensor()]), *test_gguf.FILES.values()]),
    "onnx": Parser(
        opened(".onnx"),
        [test_onnx.model(test_onnx.tensor(), test_onnx.LISTED, test_onnx.PACKED), *test_onnx.FILES.values()],
    ),
    "hdf5-texts": Parser(hdf5_texts, [test_hdf5_texts.SOUND]),
    "tensorflow-table": Parser(
        tensorflow_table, [test_tensorflow.table([test_tensorflow.HEADER, (b"w", test_tensorflow.entry())])]
    ),
    "tensorflow-entry": Parser(
        tensorflow_entry,
        [
            test_tensorflow.entry(),
            test_tensorflow.entry(dtype=7, sizes=(2,)),
            test_tensorflow.entry(sizes=(0, 4)),
            test_tensorflow.entry(rest=test_tensorflow.BOX),
        ],
    ),
    "distributed": Parser(distributed, [metadata(part=_part(_HERE))]),
    "snapshot": Parser(sealed("snapshots/00000000.json"), [_body("snapshots/00000000.json")]),
    "mark": Parser(sealed(_mark()), [_body(_mark())]),
    "manifest": Parser(manifest, [_manifest()]),
    "model-file": Parser(model_file, [_model()]),
    "any-file": Parser(opened(""), [file(one(), bytes(16)), _npy(), b"\x80\x02}.", b"GGUF", b"PK\3\4"]),
}  # fmt: skip
