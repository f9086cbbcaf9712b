"""Every folder of the package has its line in ARCHITECTURE.md."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "safepoint"
FOLDERS = sorted({path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")} - {"."})


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_in_architecture(folder: str) -> None:
    assert f"{folder}/" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_architecture_stays_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 120
