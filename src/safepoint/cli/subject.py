"""What a command is about: a run, one of its snapshots, or a whole-model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safepoint.errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from safepoint.repository import Repository, Snapshot

_MARKER = "safepoint.json"
_MODEL = "model.safetensors"


def find(text: str) -> tuple[Repository, str | None] | Path:
    """The repository and reference (None: none was given) that `text` names, or the path of a file of any kind.

    Raises:
        NotFoundError: there is neither; says where runs are, if it is a folder of them.
    """
    from safepoint.api.references import split_reference
    from safepoint.repository import Repository

    name, reference = split_reference(text)
    path = Path(name)
    model = None if (path / _MARKER).exists() else _file_at(path)
    if model is not None:
        if reference is not None:
            raise NotFoundError(f"{name} is a file and has no snapshots", hint=f"leave @{reference} away")
        return model
    repository = Repository(name)
    _ = repository.id  # raises where there is none
    return repository, reference


def _file_at(path: Path) -> Path | None:
    """The file or folder of tensors at `path`, if it is one."""
    from safepoint.formats import is_known_file, is_known_folder

    model = path / _MODEL if (path / _MODEL).is_file() else path
    foreign = is_known_folder(str(path)) if model.is_dir() else is_known_file(str(path))
    return model if foreign or model.is_file() else None


def find_run(text: str) -> Repository:
    """The repository at `text`, which names no snapshot."""
    found = find(text)
    if isinstance(found, Path):
        raise NotFoundError(f"{text} is a file, not a run", hint=f"safepoint show {text}")
    repository, reference = found
    if reference is not None:
        raise UnsupportedError(
            f"this is about a whole run, not about {text}", hint=f"leave @{reference} away, or safepoint show {text}"
        )
    return repository


def find_snapshot(text: str) -> tuple[Repository, Snapshot]:
    """The snapshot that `text` names; the newest of a run if it names none."""
    found = find(text)
    if isinstance(found, Path):
        raise NotFoundError(f"{text} is a file, not a snapshot of a run", hint=f"safepoint show {text}")
    repository, reference = found
    return repository, repository.resolve(reference or "latest")


def find_damaged(text: str) -> tuple[Repository, int] | None:
    """The repository and number that `RUN@id:NUMBER` names, if that snapshot's file is damaged or lost."""
    found = find(text)
    if isinstance(found, Path):
        return None
    repository, reference = found
    digits = (reference or "").removeprefix("id:")
    if not (reference or "").startswith("id:") or not (digits.isascii() and digits.isdigit()):
        return None
    snapshots, damaged = repository.history()
    number, newest = int(digits), max((*snapshots, *damaged), default=-1)
    return (repository, number) if number not in snapshots and number <= newest else None


def reference_of(repository: Repository, number: int) -> str:
    """The reference that will always name this snapshot."""
    return f"{repository.location}@id:{number}"


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot for programs; fields are added, never changed."""
    return {
        "number": snapshot.number,
        "step": snapshot.step,
        "time": snapshot.time.isoformat(),
        "parent": snapshot.parent,
        "tags": list(snapshot.tags),
        "metrics": as_json(dict(snapshot.metrics)),
        "num_tensors": snapshot.num_tensors,
        "num_bytes": snapshot.num_bytes,
        "written_bytes": snapshot.written_bytes,
        "verified": None if snapshot.verified is None else snapshot.verified.isoformat(),
        "pruned": snapshot.pruned,
    }


def as_json(value: Any) -> Any:
    """Nested plain values; what JSON cannot say exactly becomes a tagged object, as on disk: `{"float": "nan"}`."""
    from safepoint.codec import encode_value

    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return encode_value(value)


def protected(repository: Repository) -> dict[int, str]:
    """Number → why, of the snapshots that are never pruned."""
    from safepoint.repository import collect

    return collect.protected(repository.history()[0])
