"""Checkpoints that others left: where they are, of which step, and what was measured then; read, never run.

A step is taken from where it is certain first: Hugging Face's `trainer_state.json`, then a `global_step` or `step` in
the file, then a step in its name, then an epoch in the file, then a number in its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from safepoint import formats
from safepoint.api.open import Tensors
from safepoint.errors import CorruptionError, NotFoundError, StoreError

_SUFFIXES = frozenset(
    {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".gguf", ".index"}
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_TRAINER = "trainer_state.json"
_STATE = "checkpoint"
_MODELS = ("model.safetensors", "pytorch_model.bin")
_NO_RESULTS = frozenset({"epoch", "learning_rate", "lr", "grad_norm"})
_MAX_STATE_BYTES = 64 << 20
_BESIDE = frozenset({"optimizer", "scheduler", "training_args", "scaler"})  # Trainer's files that hold no model
_BESIDE_PREFIX = "rng_state"
_SECONDS = re.compile(r"_(runtime|per_second)$")
_STEPS = re.compile(r"(global_?step|steps?|iterations?|iter)(/\.ATTRIBUTES/VARIABLE_VALUE)?", re.IGNORECASE)
_EPOCHS = re.compile(r"(current_)?epochs?(/\.ATTRIBUTES/VARIABLE_VALUE)?", re.IGNORECASE)
_PAIR = re.compile(r"([A-Za-z][A-Za-z0-9_/]*)=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)
_WORD = re.compile(r"(?:^|[^a-z])(global_?step|steps?|iterations?|iter|epochs?|ep)[=_\-]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MONITOR = re.compile(r"(callbacks/.*)/monitor")
_TIMESTAMP = re.compile(r"^all_model_checkpoint_timestamps: ([0-9]{1,12}(?:\.[0-9]{1,9})?)$", re.MULTILINE)
_PATH = re.compile(r'^all_model_checkpoint_paths: "([^"\\]+)"$', re.MULTILINE)
_MAX_STEP = 1 << 63
_MOST_DIGITS = 19
_LATEST = 1e11  # seconds; a calendar ends some time after
_MOST_BITS = 1000  # a float holds no whole number much longer


@final
@dataclass(frozen=True, slots=True)
class Old:
    """A checkpoint that was found.

    Attributes:
        path: what `open` takes.
        name: of its file or folder.
    """

    path: Path
    name: str


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one.

    Attributes:
        step: it was saved after; None: nothing tells.
        told_by: what told the step.
        metrics: name → number.
        time: when it was written.
    """

    step: int | None
    told_by: str
    metrics: Mapping[str, float]
    time: datetime


def find(paths: Iterable[Path]) -> list[Old]:
    """The checkpoints that paths name, or that lie in the folders that they name; each once, in order.

    Raises:
        NotFoundError: a path leads nowhere, or a folder has none.
    """
    found: dict[Path, Old] = {}
    for path in paths:
        here = list(_at(path))
        if not here:
            raise NotFoundError(
                f"there is no checkpoint in {path}",
                expected="files such as epoch_3.ckpt, or folders such as checkpoint-500",
                hint="name the files themselves",
            )
        for old in here:
            found.setdefault(old.path.absolute(), old)
    return list(found.values())


def facts_of(old: Old, tensors: Tensors) -> Facts:
    """What an opened checkpoint, its name and what lies beside it tell.

    Raises:
        CorruptionError: what lies beside it cannot be read.
    """
    named_step, named_epoch, last_number, metrics = _in_name(old.name)
    step, epoch = _first(tensors, _STEPS), _first(tensors, _EPOCHS)
    metrics = metrics | _in_file(tensors) | ({} if epoch is None else {"epoch": epoch})
    trainer = _trainer_state(old.path)
    said = trainer.get("global_step")
    if type(said) is int:
        metrics |= _logged(trainer)
    told: list[tuple[str, int | None]] = [
        (_TRAINER, said if type(said) is int else None),
        ("the file", step),
        ("its name", named_step),
        ("the file's epoch", epoch),
        ("its name", named_epoch if named_epoch is not None else last_number),
    ]
    word, number = next(((word, n) for word, n in told if n is not None and 0 <= n < _MAX_STEP), ("", None))
    return Facts(number, word, dict(sorted(metrics.items(), key=_worth)), _time(old, tensors))


def _worth(metric: tuple[str, float]) -> int:
    """The place of a metric: `best` goes by the first, so what was validated comes first, what is no result last."""
    name = metric[0].lower()
    return 0 if name.startswith(("val", "eval")) else 2 if name in _NO_RESULTS else 1


def _at(path: Path) -> Iterator[Old]:
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise NotFoundError(f"{str(path)[:80]!r} is not a path", found=error, hint="check it") from error
    if not is_folder:
        if not formats.is_known_file(str(path)):
            raise NotFoundError(f"there is no {path}", hint="check the path")
        yield _of_file(path)
        return
    name = path.absolute().name
    if formats.is_marked_folder(str(path)):
        yield Old(path, name)
        return
    if any((path / model).is_file() for model in _MODELS) or any(path.glob("*.index.json")):
        yield Old(path, name)
    yield from _inside(path)


def _inside(folder: Path) -> Iterator[Old]:
    """Checkpoints right in a folder, beside the model that makes it one itself."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise StoreError(f"cannot look into {folder}", error=error, path=str(folder)) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _MODELS:
            continue
        if entry.is_dir():
            if formats.is_known_folder(str(entry)):
                yield Old(entry, entry.name)
        elif entry.suffix.lower() in _SUFFIXES and not _is_part(entry.stem):
            yield _of_file(entry)


def _is_part(stem: str) -> bool:
    """Whether a file is a shard of a checkpoint, or one of those that a trainer puts beside the model."""
    return _SHARD.search(stem) is not None or stem in _BESIDE or stem.startswith(_BESIDE_PREFIX)


def _of_file(path: Path) -> Old:
    """A file; of a TensorFlow checkpoint, its prefix."""
    prefix = path.with_name(path.name.removesuffix(".index"))
    return Old(prefix, prefix.name)


def _in_name(name: str) -> tuple[int | None, int | None, int | None, dict[str, float]]:
    """Step, epoch, last whole number, and what `name=number` says of others."""
    stem = name
    while Path(stem).suffix.lower() in _SUFFIXES | {".weights", ".model"}:
        stem = Path(stem).stem
    words = [(word.lower(), int(number)) for word, number in _WORD.findall(stem) if len(number) <= _MOST_DIGITS]
    steps = [number for word, number in words if not word.startswith("ep")]
    epochs = [number for word, number in words if word.startswith("ep")]
    pairs = {word: float(number) for word, number in _PAIR.findall(stem)}
    metrics = {word: number for word, number in pairs.items() if not _STEPS.fullmatch(word)}
    numbers = [int(number) for number in _NUMBER.findall(stem) if number.isdigit() and len(number) <= _MOST_DIGITS]
    metrics |= {"epoch": float(epochs[-1])} if epochs and steps else {}
    return (
        steps[-1] if steps else None, epochs[-1] if epochs else None, numbers[-1] if numbers else None, metrics
    )  # fmt: skip


def _first(tensors: Tensors, pattern: re.Pattern[str]) -> int | None:
    """The first whole number that stands at the top of a file under such a name."""
    for name, value in tensors.plain.items():
        if type(value) is int and pattern.fullmatch(name):
            return value
    texts = tensors.metadata.get("metadata")
    for name, text in texts.items() if isinstance(texts, dict) else ():
        if isinstance(text, str) and text.isdecimal() and len(text) < _MOST_DIGITS and pattern.fullmatch(name):
            return int(text)
    for name, spec in tensors.specs.items():
        if spec.shape in {(), (1,)} and spec.dtype in {"int32", "int64"} and pattern.fullmatch(name):
            return int(tensors[name].numpy().reshape(()))
    return None


def _in_file(tensors: Tensors) -> dict[str, float]:
    """Numbers with a point at the top of a file; what Lightning's callbacks monitor, and its score."""
    metrics = {name: value for name, value in tensors.plain.items() if type(value) is float and "/" not in name}
    for name, monitor in tensors.plain.items():
        found = _MONITOR.fullmatch(name)
        score = f"{found[1]}/current_score" if found is not None else ""
        spec = tensors.specs.get(score)
        if isinstance(monitor, str) and spec is not None and spec.num_elements == 1 and "float" in spec.dtype:
            metrics[monitor] = float(tensors[score].numpy().reshape(()))
    return metrics


def _trainer_state(path: Path) -> dict[str, Any]:
    """What Hugging Face's Trainer wrote beside a model, or nothing."""
    file = (path if path.is_dir() else path.parent) / _TRAINER
    try:
        if not file.is_file():
            return {}
        if file.stat().st_size > _MAX_STATE_BYTES:
            raise CorruptionError(f"{file} is too long", file=str(file), expected=f"{_MAX_STATE_BYTES:,} bytes")
        found = json.loads(file.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{file} is not JSON", file=str(file), found=error) from error
    except OSError as error:
        raise StoreError(f"cannot read {file}", error=error, path=str(file)) from error
    return found if isinstance(found, dict) else {}


def _logged(trainer: Mapping[str, Any]) -> dict[str, float]:
    """The newest of each number that the Trainer logged, but for how long it took."""
    metrics: dict[str, float] = {}
    history = trainer.get("log_history")
    for entry in history if isinstance(history, list) else []:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if _is_number(value) and name not in {"step", "total_flos"} and not _SECONDS.search(name):
                metrics[name] = float(value)
    return metrics


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and value.bit_length() < _MOST_BITS)


def _time(old: Old, tensors: Tensors) -> datetime:
    """When TensorFlow says that it was saved, or when the newest of its files was written."""
    files = [Path(file.path) for file in getattr(tensors.source, "files", ()) if hasattr(file, "path")]
    try:
        written = max(file.stat().st_mtime for file in files or [Path(tensors.location)])
    except OSError as error:
        raise StoreError(f"cannot look at {tensors.location}", error=error, path=tensors.location) from error
    said = _said_time(old) if tensors.kind == "tensorflow" else None
    return datetime.fromtimestamp(written if said is None else said, UTC)


def _said_time(old: Old) -> float | None:
    """The time of a checkpoint in the state file of its folder."""
    state = old.path.parent / _STATE
    if not state.is_file() or state.stat().st_size > _MAX_STATE_BYTES:
        return None
    text = state.read_text("utf-8", "replace")
    names = [Path(path).name for path in _PATH.findall(text)]
    times = _TIMESTAMP.findall(text)
    if len(names) != len(times) or old.name not in names:
        return None
    moment = float(times[names.index(old.name)])
    return moment if moment < _LATEST else None
