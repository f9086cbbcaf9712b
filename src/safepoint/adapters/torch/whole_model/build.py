"""A model out of its structure: modules by allowed class and arguments, children in their places.

Invariant: the whole structure is checked, every name in it resolved, before the first constructor runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from safepoint.adapters.torch.whole_model import hugging_face, layers, values
from safepoint.adapters.torch.whole_model.isolation import constructing
from safepoint.adapters.torch.whole_model.names import Names
from safepoint.errors import CorruptionError, SafepointError, UnsupportedError
from safepoint.tree import Tensor, is_value

MAX_DEPTH = 200  # modules in modules
MAX_MODULES = 200_000
_KEYS = frozenset({"class", "arguments", "positional", "children", "attributes", "items", "generation", "id"})


def build(node: Any, names: Names, tensors: Mapping[str, Tensor], state_bytes: int) -> Any:
    """The module that a node describes; its parameters hold whatever was in memory.

    Args:
        node: see `describe`.
        names: what it may name.
        tensors: those of the file that arguments may refer to, by name.
        state_bytes: no parameter is larger.

    Raises:
        UntrustedError: it names what nobody allowed; nothing was run.
        UnsupportedError: a constructor refused its arguments.
        CorruptionError: nothing that `describe` writes.
    """
    check(node, names)
    with constructing(state_bytes, names.where):
        return Builder(names, tensors, most_layers=len(tensors)).module(node)


def check(node: Any, names: Names) -> None:
    """Resolve every name and count every node; nothing is run.

    Raises:
        UntrustedError: a name that nobody allowed.
        CorruptionError: too deep, too large, or no structure.
    """
    todo: list[tuple[Any, int]] = [(node, 0)]
    modules = 0
    while todo:
        item, depth = todo.pop()
        modules += isinstance(item, dict) and "class" in item
        if depth > 6 * MAX_DEPTH or modules > MAX_MODULES:
            raise CorruptionError(
                f"the structure in {names.where} is too deep or too large",
                file=names.where,
                expected=f"at most {MAX_DEPTH} modules in modules, {MAX_MODULES:,} in all",
            )
        if isinstance(item, dict):
            if "class" in item:
                _check_name(item["class"], names, is_module=True)
            for tag, kind in (("name", str), ("object", list), ("partial", list), ("config", list)):
                content = item.get(tag)
                if len(item) == 1 and isinstance(content, kind):
                    _check_name(content if kind is str else content[:1] and content[0], names, is_module=False)
            todo += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            todo += [(child, depth + 1) for child in item]


def settable(module: Any, name: str) -> bool:
    """Whether an attribute is data to the module's class too: never a method, a property or nn.Module's own."""
    there = inspect.getattr_static(type(module), name, None)
    return (is_value(there) or isinstance(there, list | tuple | dict)) and name not in vars(nn.Module())


def _check_name(name: Any, names: Names, *, is_module: bool) -> None:
    if not isinstance(name, str):
        raise CorruptionError(f"{names.where} names no class", file=names.where, found=str(name)[:60])
    _ = names.module(name) if is_module else names.resolve(name)


@final
class Builder:
    """Builds nodes, inside `constructing`. One that was built before under its `id` is the same module again."""

    def __init__(self, names: Names, tensors: Mapping[str, Tensor], *, most_layers: int) -> None:
        self.names = names
        self._most_layers = most_layers
        self._tensors = tensors
        self._by_id: dict[int, Any] = {}
        self._kept: dict[int, Any] = {}
        self._depth = 0

    def keep(self, node: dict[str, Any], module: Any) -> None:
        """Have `module` for `node` from now on, instead of building it; the node must stay alive."""
        self._kept[id(node)] = module

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise self._damaged(f"an argument is the tensor {name[:100]!r}, which is not there")
        return self._tensors[name]

    def module(self, node: Any) -> Any:
        if isinstance(node, dict) and node.keys() == {"same"}:
            if not isinstance(node["same"], int) or node["same"] not in self._by_id:
                raise self._damaged("a module is said to be the same as one that does not exist")
            return self._by_id[node["same"]]
        if id(node) in self._kept:
            return self._kept[id(node)]
        if not isinstance(node, dict) or not isinstance(node.get("class"), str) or not node.keys() <= _KEYS:
            raise self._damaged(f"no description of a module: {str(node)[:60]!r}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._damaged(f"modules are nested deeper than {MAX_DEPTH}")
        module = self._made(node)
        self.change(module, node)
        if isinstance(node.get("id"), int):
            self.name(node["id"], module)
        self._depth -= 1
        return module

    def name(self, number: int, module: Any) -> None:
        """What {"same": number} is."""
        self._by_id[number] = module

    def change(self, module: Any, node: dict[str, Any]) -> None:
        """Do to a module what was done to it after its construction."""
        for path, child in self._pairs(node, "children"):
            self._put(module, path, None if child is None else self.module(child))
        for path, attribute, value in self._triples(node):
            self._set(module, path, attribute, values.decode(value, self))
        if "generation" in node:
            self._generate(module, values.decode(node["generation"], self))

    def _made(self, node: dict[str, Any]) -> Any:
        kind = self.names.module(node["class"])
        if kind in layers.LISTS:
            return self._parameters(kind, node)
        given = {str(key): values.decode(value, self) for key, value in self._pairs(node, "arguments")}
        positional = values.decode(node.get("positional", []), self)
        if layers.name_of(kind) is not None:
            self._check_counts(given)
        try:
            return kind(*positional, **given)
        except SafepointError:
            raise
        except Exception as error:  # whatever a constructor raises for arguments that it does not take
            raise UnsupportedError(
                f"{node['class']} in {self.names.where} cannot be built from the arguments that were saved",
                expected=str(node.get("arguments", []))[:300],
                found=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}",
                hint="its class, or torch itself, has changed since it was saved",
            ) from error

    def _check_counts(self, given: Mapping[str, Any]) -> None:
        """A layer of torch's own is copied as often as it is told to: every copy has tensors, and they are saved."""
        for name in layers.COUNTS:
            if isinstance(given.get(name), int) and given[name] > self._most_layers:
                raise self._damaged(f"{name} is {given[name]:,}, more than there are tensors")

    def _parameters(self, kind: Any, node: dict[str, Any]) -> Any:
        items = [(key, self._item(item)) for key, item in self._pairs(node, "items")]
        if kind is nn.ParameterDict:
            return nn.ParameterDict({str(key): value for key, value in items})
        return nn.ParameterList([value for _, value in items])

    def _item(self, item: Any) -> Any:
        match item:
            case {"parameter": [list(shape), str(dtype)]} if all(type(n) is int and n >= 0 for n in shape):
                tensor = values.decode({"dtype": f"torch.{dtype}"}, self)
                return nn.Parameter(torch.empty(shape, dtype=tensor), requires_grad=tensor.is_floating_point)
        return values.decode(item, self)

    def _put(self, root: Any, path: Any, child: Any) -> None:
        parent, _, name = str(path).rpartition(".")
        try:
            owner = root.get_submodule(parent)
            _ = owner.register_module(name, child)
        except (AttributeError, KeyError, TypeError) as error:
            raise self._damaged(f"there is no place {str(path)[:100]!r} for a module") from error

    def _set(self, root: Any, path: str, attribute: str, value: Any) -> None:
        """Only what the constructor itself set, and only data by data: an attribute never replaces a method."""
        try:
            owner = root.get_submodule(path)
        except AttributeError as error:
            raise self._damaged(f"there is no module {path[:100]!r}") from error
        if attribute.startswith("_") and attribute not in vars(owner):
            raise self._damaged(f"{attribute[:100]!r} is no attribute of {type(owner).__name__}")
        if isinstance(value, nn.Module | torch.Tensor) or callable(value) or not settable(owner, attribute):
            raise self._damaged(f"{attribute[:100]!r} of {type(owner).__name__} cannot be given by a file")
        object.__setattr__(owner, attribute, value)

    def _generate(self, module: Any, data: Any) -> None:
        if hugging_face.name_of(type(module)) is None or not isinstance(data, dict):
            raise self._damaged("generation is of no model of transformers")
        module.generation_config = hugging_face.generating(type(module), data, self.names.where)

    def _pairs(self, node: dict[str, Any], key: str) -> list[Any]:
        found = node.get(key, [])
        if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
            raise self._damaged(f"{key} are no pairs")
        return list(found)

    def _triples(self, node: dict[str, Any]) -> list[Any]:
        found = node.get("attributes", [])
        good = isinstance(found, list) and all(isinstance(triple, list) and len(triple) == 3 for triple in found)
        if not good or not all(isinstance(path, str) and isinstance(name, str) for path, name, _ in found):
            raise self._damaged("attributes are no triples")
        return list(found)

    def _damaged(self, what: str) -> CorruptionError:
        return CorruptionError(f"{self.names.where}: {what}", file=self.names.where)
