"""The README's pictures are there, small, and load nothing from anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = re.findall(r"^!\[([^\]]*)\]\(([^)]*)\)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_what_the_commands_show_is_in_the_readme() -> None:
    shown = {alternative.split()[1] for alternative, _ in PICTURES}
    assert shown == {"log", "show", "diff", "health", "plot"}


@pytest.mark.parametrize("path", [path for _, path in PICTURES])
def test_a_picture_is_small_and_stands_alone(path: str) -> None:
    data = (ROOT / path).read_bytes()
    assert len(data) < 150_000
    assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(rb"<script|<image|@import|url\((?!#)|href=\"(?!#)", data)


def test_every_picture_that_is_kept_is_shown() -> None:
    assert {path.name for path in (ROOT / "docs/pictures").glob("*.svg")} == {Path(path).name for _, path in PICTURES}
