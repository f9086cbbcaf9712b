"""`safepoint.__all__` is the public API: this list, sorted, complete, every name importable."""

from __future__ import annotations

import types

import pytest

import safepoint

PUBLIC_NAMES = [
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


def test_public_names_are_the_pinned_list() -> None:
    assert list(safepoint.__all__) == PUBLIC_NAMES


def test_public_names_are_sorted_and_unique() -> None:
    assert sorted(set(safepoint.__all__)) == safepoint.__all__


def test_nothing_else_looks_public() -> None:
    found = {
        name
        for name, value in vars(safepoint).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert found <= set(safepoint.__all__)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_had(name: str) -> None:
    try:
        found = getattr(safepoint, name)
    except (ImportError, safepoint.SafepointError) as error:
        # Without its framework a name may be unavailable, if it says which extra to install.
        found = str(error) if "safepoint[" in f"{error} {getattr(error, 'hint', '')}" else None
    assert found is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        safepoint.no_such_name  # noqa: B018
