"""Save, load, resume and understand neural networks: exactly, safely, at the speed of the disk."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from safepoint.adapters.registered import register
    from safepoint.api.checkpoint import Checkpoint
    from safepoint.api.manager import CheckpointManager
    from safepoint.api.model import load_model, save_model
    from safepoint.api.open import open  # noqa: A004 — it is what it says
    from safepoint.api.policies import Best, EveryMinutes, EveryNth, EverySteps, Latest, OnBest, Within
    from safepoint.api.report import Report
    from safepoint.errors import (
        ConflictError,
        CorruptionError,
        ExistsError,
        MismatchError,
        NotFoundError,
        RestoreInterrupted,
        SafepointError,
        StoreError,
        UnsupportedError,
        UntrustedError,
    )
    from safepoint.integrations.keras import KerasCheckpoint
    from safepoint.integrations.resumable import Resumable
    from safepoint.repository import Repository

__version__ = "0.1.0"

__all__ = [
    "Best",
    "Checkpoint",
    "CheckpointManager",
    "ConflictError",
    "CorruptionError",
    "EveryMinutes",
    "EveryNth",
    "EverySteps",
    "ExistsError",
    "KerasCheckpoint",
    "Latest",
    "MismatchError",
    "NotFoundError",
    "OnBest",
    "Report",
    "Repository",
    "RestoreInterrupted",
    "Resumable",
    "SafepointError",
    "StoreError",
    "UnsupportedError",
    "UntrustedError",
    "Within",
    "load_model",
    "open",
    "register",
    "save_model",
]

# Every name is imported when it is asked for: `import safepoint` costs a few milliseconds and no framework.
_HOMES = {
    "safepoint.adapters.registered": ("register",),
    "safepoint.api.checkpoint": ("Checkpoint",),
    "safepoint.api.manager": ("CheckpointManager",),
    "safepoint.api.model": ("load_model", "save_model"),
    "safepoint.api.open": ("open",),
    "safepoint.api.policies": ("Best", "EveryMinutes", "EveryNth", "EverySteps", "Latest", "OnBest", "Within"),
    "safepoint.api.report": ("Report",),
    "safepoint.errors": (*(name for name in __all__ if name.endswith("Error")), "RestoreInterrupted"),
    "safepoint.integrations.keras": ("KerasCheckpoint",),
    "safepoint.integrations.resumable": ("Resumable",),
    "safepoint.repository": ("Repository",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> typing.Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'safepoint' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("safepoint"):
            raise
        raise ImportError(
            f"safepoint.{name} needs {error.name}: pip install 'safepoint[{error.name}]'", name=error.name
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
