"""Arguments of the wrong type, told at the boundary: a TypeError that says what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index


def check_patterns(argument: str, patterns: object) -> tuple[str, ...]:
    """Names or globs; a single one may stand alone.

    Raises:
        TypeError: it is no list of text.
    """
    if isinstance(patterns, str):
        return (patterns,)
    several = tuple(patterns) if isinstance(patterns, Iterable) else (None,)
    if not all(isinstance(item, str) for item in several):
        raise TypeError(f"{argument} must be a list of text, not {patterns!r}")
    return several


def check_rules(rules: object) -> Mapping[str, str] | None:
    """Regular expressions and what replaces them.

    Raises:
        TypeError: it is no mapping of text to text.
    """
    if rules is None:
        return None
    if not isinstance(rules, Mapping) or not all(isinstance(word, str) for pair in rules.items() for word in pair):
        raise TypeError(f"rename must map regular expressions to replacements, not {rules!r}: rename={{'^old': 'new'}}")
    return dict(rules)


def check_total(total: object) -> int:
    """The number of steps of a run.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        return index(total)  # type: ignore[arg-type]  # whatever it is, this tells
    except TypeError:
        raise TypeError(f"steps(total) needs the number of steps of the whole run, not {total!r}") from None
