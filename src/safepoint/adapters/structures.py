"""What the structures in whole-model files have in common, whatever the framework: versions, sizes, names.

Invariant: nothing here imports by a name that a file holds; a name is looked up among what is imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError

_Document = TypeVar("_Document", bound=msgspec.Struct)


def check_version(found: object, version: int, what: str) -> None:
    """Refuse what a later safepoint wrote.

    Raises:
        UnsupportedError: it is no version of ours.
    """
    if found != version:
        raise UnsupportedError(
            f"{what} was written by a newer safepoint",
            expected=f"version {version}",
            found=found,
            hint="update safepoint",
        )


def check_kind(structure: Mapping[str, Any], *, kind: str, version: int, word: str, where: str) -> None:
    """Whether a structure is of this kind and version.

    Raises:
        CorruptionError: it is another, or none.
        UnsupportedError: a newer version's.
    """
    if structure.get("kind") != kind:
        raise CorruptionError(f"{where} holds no {word}", file=where, found=str(structure.get("kind"))[:60])
    check_version(structure.get("version"), version, where)


def decode_graph(
    document: object,
    kind: type[_Document],
    *,
    version: int,
    max_depth: int,
    max_values: int,
    check: Callable[[_Document], None],
    where: str,
) -> _Document:
    """The document of an exported graph, of the right form and size; `check` raises ValueError where it is not sound.

    Raises:
        UnsupportedError: a newer version's.
        CorruptionError: nothing that this version writes.
    """
    found = document.get("version") if isinstance(document, Mapping) else None
    if isinstance(found, int) and found > version:
        check_version(found, version, f"the graph in {where}")
    try:
        check_size(document, max_depth=max_depth, max_values=max_values)
        decoded = msgspec.convert(document, kind, strict=True)
        check(decoded)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise CorruptionError(f"the graph in {where} is none", file=where, found=str(error)[:300]) from error
    return decoded


def check_size(document: object, *, max_depth: int, max_values: int) -> None:
    """Whether plain JSON is within limits, looked at without recursion.

    Raises:
        ValueError: it is nested too deep, too large, or has a number beyond 64 bits.
    """
    todo: list[tuple[object, int]] = [(document, 0)]
    seen = 0
    while todo:
        item, depth = todo.pop()
        seen += 1
        if depth > max_depth or seen > max_values:
            raise ValueError("it is nested too deep, or too large")
        if isinstance(item, dict):
            todo += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list | tuple):
            todo += [(child, depth + 1) for child in item]
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            raise ValueError("a number in it is beyond 64 bits")


def within(module: str, prefixes: Iterable[str]) -> bool:
    """Whether a module is one of some packages, or inside one."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def defined_in(module: str, name: str, prefixes: Iterable[str]) -> Any:
    """What an imported module inside `prefixes` defines itself under a name; never what it merely imported; or None."""
    if not within(module, prefixes) or module not in sys.modules:
        return None
    found = vars(sys.modules[module]).get(name)
    return found if within(str(getattr(found, "__module__", "")), prefixes) else None


def refusal(where: str, full: str, *, expected: str, own: str | None, package: str | None = None) -> UntrustedError:
    """The error about a name that nobody allowed, and how to allow it, where anything could be right about that.

    Args:
        where: what names it: a path.
        full: the name.
        expected: what may be named.
        own: what to do where the name is the framework's own; else None.
        package: that it belongs to, where the name does not tell.
    """
    full = full[:200]
    package, short = package or full.partition(".")[0], full.rpartition(".")[2]
    if own is None and package in sys.stdlib_module_names:
        own = "no model needs that: whoever made the file may have wanted it to run something; do not load it"
    return UntrustedError(
        f"{where} names {full}, which nobody allowed; nothing was imported or run",
        expected=expected,
        found=full,
        hint=own
        or f"if you know it, import it and pass custom_objects={{{short!r}: {short}}}, or trust=({package!r},), "
        "or decorate it with @safepoint.register",
    )
