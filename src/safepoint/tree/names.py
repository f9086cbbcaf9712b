"""Names of leaves: one spelling, `model/encoder.weight`; selecting, renaming and finding the nearest."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping

from safepoint.errors import MismatchError, UnsupportedError
from safepoint.limits import MAX_NAME_LENGTH

_FORBIDDEN = re.compile("[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def join_name(prefix: str, name: str) -> str:
    """`prefix/name`; either may be empty."""
    return f"{prefix}/{name}" if prefix and name else prefix or name


def check_name(name: str) -> str:
    """`name`, if it can be kept: no control, direction or surrogate characters, at most 1024 long, NFC.

    Raises:
        UnsupportedError: it cannot.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise UnsupportedError(f"name {name[:60]!r}... is too long", expected=f"at most {MAX_NAME_LENGTH} characters")
    if _FORBIDDEN.search(name):
        raise UnsupportedError(f"name {name!r} has a control, direction or surrogate character")
    if not name.isascii() and not unicodedata.is_normalized("NFC", name):
        raise UnsupportedError(f"name {name!r} is not in Unicode's composed form (NFC)")
    return name


def check_names(names: Collection[str]) -> None:
    """`check_name` of each.

    Raises:
        UnsupportedError: one cannot be kept.
    """
    together = "".join(names)
    if together.isascii() and together.isprintable() and max(map(len, names), default=0) <= MAX_NAME_LENGTH:
        return  # nearly always, and quick
    for name in names:
        check_name(name)


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """A glob over names: `*` and `?` match any character, slashes and dots too; everything else is literal."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any glob matches the whole name, or names its parent (`model` means `model/w` too)."""
    return any(
        name == pattern
        or name.startswith(f"{pattern}/")
        or (("*" in pattern or "?" in pattern) and glob_to_regex(pattern).fullmatch(name) is not None)
        for pattern in patterns
    )


def select(names: Iterable[str], patterns: Iterable[str], *, argument: str = "select") -> list[str]:
    """The names that `matches` any of the patterns, in their order.

    Raises:
        MismatchError: there are no patterns, or one matches nothing: it may be misspelt.
    """
    names, patterns = list(names), list(patterns)
    if not patterns:
        raise MismatchError(f"{argument}=[] means nothing at all", hint=f"leave {argument} out")
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise MismatchError(
                f"{argument}={pattern!r} matches no name", missing=[pattern], hint=_did_you_mean(pattern, names)
            )
    return [name for name in names if matches(name, patterns)]


def rename(names: Iterable[str], rules: Mapping[str, str] | None) -> dict[str, str]:
    """Saved name → new name, each regex substituted in its order.

    Raises:
        MismatchError: two names become one, or a regex is found in no name: it may be misspelt.
        UnsupportedError: a regex is not valid.
    """
    names = list(names)
    result = {name: name for name in names}
    for pattern, replacement in (rules or {}).items():
        try:
            regex = re.compile(pattern)
            if not any(map(regex.search, result.values())):
                raise MismatchError(
                    f"rename={pattern!r} is found in no name", missing=[pattern], hint=_did_you_mean(pattern, names)
                )
            result = {name: regex.sub(replacement, new) for name, new in result.items()}
        except (re.error, IndexError) as error:
            raise UnsupportedError(f"rename={pattern!r} is not a regular expression", found=error) from error
    owner: dict[str, str] = {}
    for name, new in result.items():
        if new in owner:
            raise MismatchError(
                f"rename= turns two names into {new!r}",
                unexpected=[owner[new], name],
                hint="make the pattern match one of them only, or leave one out with select=",
            )
        owner[new] = name
    return result


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None if none is like it."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else None


def _did_you_mean(name: str, candidates: list[str]) -> str:
    close = nearest(name, candidates)
    return f"did you mean {close!r}?" if close else f"names are like {candidates[0]!r}" if candidates else "it is empty"
