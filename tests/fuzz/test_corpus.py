"""What fuzzing begins from, and all that it ever found, again: taken, or refused by an error of our own."""

from __future__ import annotations

import pytest
from tests.fuzz.parsers import CORPUS, PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_and_findings_are_taken_or_refused(name: str) -> None:
    parser = PARSERS[name]
    assert parser.check(parser.seeds[0]) or name == "any-file"
    for data in parser.seeds[1:]:
        parser.check(data)
    for path in sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []:
        parser.check(path.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
def test_every_cut_of_a_seed_is_taken_or_refused(name: str) -> None:
    parser = PARSERS[name]
    data = parser.seeds[0]
    for end in range(0, len(data), 1 + len(data) // 40):
        parser.check(data[:end])
