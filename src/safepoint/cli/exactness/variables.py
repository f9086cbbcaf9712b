"""What a script holds beside its tracked objects: its variables, by function and name, and digests of their content.

Invariant: looking changes nothing; what cannot be read, or is large, is left out.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, GeneratorType, ModuleType
from typing import Any, final

import blake3

from safepoint.adapters import find
from safepoint.adapters.containers import kind_of
from safepoint.api.checkpoint import Checkpoint
from safepoint.cli.exactness.records import Variable
from safepoint.codec import encode_value
from safepoint.tree import Leaf, StateTree, Tensor, is_value

_LARGEST_BYTES = 32 << 20
_LONGEST_TEXT = 1000
_OURS = Path(__file__).parents[2]


def digest(leaf: Leaf) -> str:
    """Equal exactly where two leaves are: -0.0 is not 0.0, and True is not 1. Short values are readable."""
    if isinstance(leaf, Tensor):
        return f"{leaf.spec} {blake3.blake3(leaf.read().data).hexdigest()[:24]}"
    text = f"{type(leaf).__name__} {encode_value(leaf)}"
    return text if len(text) <= 80 else blake3.blake3(text.encode()).hexdigest()[:24]


def digest_of(tree: StateTree) -> str:
    """Of all leaves of a tree."""
    hasher = blake3.blake3()
    for name, leaf in sorted(tree.leaves.items(), key=lambda item: item[0]):
        hasher.update(f"{name} {digest(leaf)}\n".encode())
    return hasher.hexdigest()[:24]


def identities(objects: Mapping[str, Any]) -> set[int]:
    """`id` of everything that is tracked, and of what dictionaries and lists among it hold."""
    found: set[int] = set()
    rest = list(objects.values())
    while rest:
        obj = rest.pop()
        if id(obj) not in found:
            found.add(id(obj))
            if isinstance(obj, dict):
                rest += obj.values()
            elif isinstance(obj, list | tuple):
                rest += obj
    return found


@final
class Variables:
    """The variables of a script's own code: modules under its folder."""

    def __init__(self, script: Path) -> None:
        self._folder = script.resolve().parent
        self._own = {str(script): True}  # file name → whether it is the user's

    def of(self, frame: FrameType | None, tracked: Collection[int], names: Collection[str]) -> dict[str, Variable]:
        """Those seen from `frame`, but for the objects `tracked` (ids) and the variables `names`."""
        found: dict[str, Variable] = {}
        for label, obj in self._named(frame):
            if id(obj) in tracked or label.rpartition(":")[2] in names or label in found:
                continue
            try:
                variable = _variable(obj)
            except Exception:  # noqa: BLE001, S112 — an object of anybody's: it is evidence or it is not
                continue
            if variable is not None:
                found[label] = variable
        return found

    def _named(self, frame: FrameType | None) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        while frame is not None:
            if self._is_own(frame.f_code.co_filename):
                function = frame.f_code.co_name
                places = [("", frame.f_globals)]
                if function != "<module>":
                    places.insert(0, (f"{function}:", frame.f_locals))
                for prefix, variables in places:
                    if id(variables) not in seen:
                        seen.add(id(variables))
                        yield from self._unfold(prefix, dict(variables))
            frame = frame.f_back

    def _unfold(self, prefix: str, variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Variables, and the attributes of those that are objects of the script's own classes."""
        for name, obj in variables.items():
            if name.startswith("__") or isinstance(obj, ModuleType | FunctionType | type):
                continue
            yield f"{prefix}{name}", obj
            if type(obj).__module__ == "__main__" and hasattr(obj, "__dict__"):
                yield from ((f"{prefix}{name}.{key}", value) for key, value in vars(obj).items())

    def _is_own(self, filename: str) -> bool:
        if filename not in self._own:
            path = Path(filename).resolve()
            inside = path.is_relative_to(self._folder) and not path.is_relative_to(_OURS)
            self._own[filename] = inside and not {"site-packages", "dist-packages"} & set(path.parts)
        return self._own[filename]


def _variable(obj: Any) -> Variable | None:
    public = [part for part in type(obj).__module__.split(".") if not part.startswith("_")]
    name = ".".join([*public, type(obj).__qualname__]).removeprefix("builtins.")
    if is_value(obj):
        small = not isinstance(obj, str | bytes) or len(obj) <= _LONGEST_TEXT
        return Variable("value", name, digest(obj)) if small else None
    if type(obj).__module__.startswith(("safepoint.api", "safepoint.repository")):
        return None
    if _is_data(obj):
        return Variable("data", name, "")
    if find(obj) is None:
        return None
    if kind_of(obj) is not None and getattr(obj, "nbytes", 0) > _LARGEST_BYTES:
        return None
    tree = Checkpoint(it=obj).capture({"it": obj})
    if tree.num_bytes > _LARGEST_BYTES:
        return None
    return Variable(_kind(obj, name), name, digest_of(tree))


def _kind(obj: Any, name: str) -> str:
    if "random" in name.lower() or name.endswith("Generator"):
        return "generator"
    return "array" if kind_of(obj) is not None or isinstance(obj, dict | list | tuple) else "state"


def _is_data(obj: Any) -> bool:
    """Whether it hands out data from a position that cannot be read."""
    if isinstance(obj, GeneratorType):
        return not Path(obj.gi_code.co_filename).is_relative_to(_OURS)
    module = type(obj).__module__
    if module.startswith(("torch.utils.data", "tensorflow.python.data")):
        return hasattr(type(obj), "__iter__") and not hasattr(obj, "state_dict")
    return hasattr(type(obj), "__next__") and not isinstance(obj, io.IOBase) and not hasattr(obj, "state_dict")
