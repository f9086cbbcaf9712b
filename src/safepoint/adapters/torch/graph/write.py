"""PyTorch's exported program → the document of a graph, and the constants that it needs.

Invariant: what cannot be said in the document's closed schema is refused here, at save time; source paths, stack
traces and class names are not kept.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from safepoint.adapters.torch import tensors
from safepoint.adapters.torch.graph import arguments, guards, operators, schema, trees
from safepoint.adapters.torch.graph.schema import GraphDocument, GraphInput, GraphSize, GraphTensor
from safepoint.codec import encode_value
from safepoint.errors import UnsupportedError
from safepoint.tree import is_value

CONSTANTS = "__safepoint__/graph/"
# Regions that only say how to run what is in them: (the flag that must be False or may be either, where the graph is).
_REGIONS = {"wrap_with_set_grad_enabled": (None, 1), "wrap_with_autocast": (2, 4)}
_DROPPED = "aten._assert_tensor_metadata"  # repeats dtype and device, which follow the model


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A parameter or buffer of the model.

    Attributes:
        name: its clean name.
        tensor: itself.
        kind: as in the document.
        stored: its name in the file.
    """

    name: str
    tensor: Any
    kind: Any
    stored: str


@final
@dataclass(frozen=True, slots=True)
class Call:
    """What a model is traced with: arguments by position, called `names` by `forward`, and by name."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@final
class Writer:
    """Writes one exported program down: `document`, and `constants`, live tensors by their names in the file."""

    def __init__(self, program: Any, model: Any, members: list[Member], call: Call) -> None:
        self.constants: dict[str, Any] = {}
        self._program = program
        self._device = next((member.tensor.device for member in members), torch.device("cpu"))
        self._values: dict[Any, Any] = {}  # node → its JSON, or a list of these
        self._nodes: list[tuple[str, list[Any], dict[str, Any]]] = []
        self._tensors = [_tensor(member, members[:number]) for number, member in enumerate(members)]
        signature = program.graph_signature
        holders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        numbers = {id(member.tensor): number for number, member in reversed([*enumerate(members)])}
        for spec in signature.input_specs:
            if spec.kind.name == "USER_INPUT":
                continue
            live = _live(model, program, spec)
            number = numbers.get(id(live))
            self._values[holders[spec.arg.name]] = {"value": self._constant(live) if number is None else number}
        leaves = [holders[spec.arg.name] for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
        self._inputs: list[GraphInput] = []
        self._sources: dict[str, int | None] = {}
        remaining = iter(leaves)
        positional = [self._tree(v, n, f"L[{n!r}]", remaining) for n, v in zip(call.names, call.args, strict=True)]
        keyword = {name: self._tree(value, name, f"L[{name!r}]", remaining) for name, value in call.kwargs.items()}
        if next(remaining, None) is not None:
            raise UnsupportedError("the graph has more inputs than the example")
        self._run(program.graph_module, ())
        outputs = self._outputs(signature)
        self.document = GraphDocument(
            version=schema.VERSION,
            torch=str(torch.__version__),
            tensors=self._tensors,
            inputs=self._inputs,
            positional=positional,
            keyword=keyword,
            names=[*call.names],
            sizes=self._sizes(),
            guards=self._guards(),
            nodes=self._nodes,
            outputs=outputs,
        )

    def _constant(self, tensor: Any) -> int:
        stored = f"{CONSTANTS}{len(self.constants)}"
        self.constants[stored] = tensor.detach()
        self._tensors.append(_tensor(Member(stored, tensor, "constant", stored), []))
        return len(self._tensors) - 1

    def _tree(self, value: Any, name: str, source: str, leaves: Iterator[Any]) -> Any:
        """The tree of an argument; its leaves become inputs, in the order in which PyTorch has them."""
        paths = iter(_paths(value, name, source))

        def leaf(each: Any) -> Any:
            label, place = next(paths)
            node = next(leaves, None)
            if node is None:
                raise UnsupportedError("the graph has fewer inputs than the example")
            number = len(self._inputs)
            self._values[node] = {"value": len(self._tensors) + number}
            if isinstance(each, torch.Tensor):
                sizes = [self._size(size) for size in node.meta["val"].shape]
                self._inputs.append(GraphInput(label, tensors.name_of(each.dtype), sizes))
            elif is_value(each) and not isinstance(each, bytes):
                self._inputs.append(GraphInput(label, constant=encode_value(each)))
            else:
                raise UnsupportedError(f"an input of the graph is a {type(each).__name__}", expected="tensors")
            self._sources[place] = number if isinstance(each, torch.Tensor) else None
            return {"input": number}

        return trees.encode(value, leaf, "inputs")

    def _size(self, size: Any) -> int | str | None:
        if isinstance(size, int):
            return size
        symbol = size.node.expr
        return str(symbol) if symbol.is_symbol else int(symbol) if symbol.is_Integer else None

    def _sizes(self) -> dict[str, GraphSize]:
        used = {size for item in self._inputs for size in item.shape or () if isinstance(size, str)}
        found: dict[str, GraphSize] = {}
        for symbol, span in self._program.range_constraints.items():
            if str(symbol) in used:
                found[str(symbol)] = GraphSize(max(0, int(span.lower)), _bound(span.upper))
        return {name: found.get(name, GraphSize(2)) for name in sorted(used)}

    def _guards(self) -> list[Any]:
        texts = getattr(self._program, "_guards_code", None) or []
        parsed = [guards.parse(text, self._sources) for text in texts]
        return [each for number, each in enumerate(parsed) if each is not None and each not in parsed[:number]]

    def _run(self, module: Any, given: tuple[Any, ...]) -> list[Any]:
        """Write the nodes of a graph; the JSON of what it returns. `given`: of its inputs, in a region."""
        arrived = iter(given)
        for node in module.graph.nodes:
            if node.op == "placeholder" and node not in self._values:
                self._values[node] = next(arrived)
            elif node.op == "output":
                return (
                    [self._json(each) for each in node.args[0]]
                    if given or module is not self._program.graph_module
                    else []
                )
            elif node.op == "call_function":
                self._call(node, module)
            elif node.op == "get_attr" and not isinstance(getattr(module, node.target, None), torch.fx.GraphModule):
                raise UnsupportedError(f"the graph has the constant {node.target!r} outside its signature")
            elif node.op not in {"placeholder", "get_attr"}:
                raise UnsupportedError(f"the graph has a {node.op} of {node.target}")
        return []

    def _call(self, node: Any, module: Any) -> None:
        target = node.target
        kind = getattr(target, "_name", None) if isinstance(target, torch._ops.HigherOrderOperator) else None
        if kind in _REGIONS:
            flag, place = _REGIONS[kind]
            if flag is not None and node.args[flag] is not False:
                raise UnsupportedError("the model turns autocast on inside itself", hint="turn it on around the model")
            inside = getattr(module, node.args[place].target)
            self._values[node] = self._run(inside, tuple(self._json(each) for each in node.args[place + 1 :]))
            return
        if str(target).startswith(_DROPPED):
            return
        name = operators.name_of(target)
        if name is None:
            raise UnsupportedError(
                f"the model calls {target}, which no graph in a file may call",
                expected="ATen operators that only compute",
            )
        if name == "operator.getitem" and isinstance(self._values.get(node.args[0]), list):
            self._values[node] = self._values[node.args[0]][node.args[1]]
            return
        args = [self._json(each) for each in node.args]
        kwargs = {key: self._json(each) for key, each in node.kwargs.items()}
        self._values[node] = self._new(name, args, kwargs)

    def _new(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, int]:
        self._nodes.append((target, args, kwargs))
        return {"value": len(self._tensors) + len(self._inputs) + len(self._nodes) - 1}

    def _json(self, argument: Any) -> Any:
        return arguments.encode(argument, self._values.__getitem__, self._device)

    def _outputs(self, signature: Any) -> Any:
        """The tree of the results; what the graph changes in place comes last of its steps."""
        (output,) = (node for node in self._program.graph.nodes if node.op == "output")
        found: list[Any] = []
        for spec, value in zip(signature.output_specs, output.args[0], strict=True):
            if spec.kind.name == "USER_OUTPUT":
                found.append(self._json(value))
            elif spec.kind.name in {"BUFFER_MUTATION", "PARAMETER_MUTATION", "USER_INPUT_MUTATION"}:
                self._new("aten.copy_.default", [self._changed(signature, spec), self._json(value)], {})
            else:
                raise UnsupportedError(f"the graph returns a {spec.kind.name.lower()}")
        results = iter(found)
        return _results(self._program.call_spec.out_spec, results)

    def _changed(self, signature: Any, changed: Any) -> Any:
        for spec in signature.input_specs:
            if changed.target in {spec.target, spec.arg.name} - {None}:
                return next(
                    v for node, v in self._values.items() if node.name == spec.arg.name and node.op == "placeholder"
                )
        raise UnsupportedError(f"the graph changes {changed.target!r}, which is none of its inputs")


def _tensor(member: Member, before: list[Member]) -> GraphTensor:
    tied = next((number for number, other in enumerate(before) if other.tensor is member.tensor), None)
    return GraphTensor(
        name=member.name,
        kind=member.kind,
        dtype=tensors.name_of(member.tensor.dtype),
        shape=[*member.tensor.shape],
        stored=member.stored if tied is None else before[tied].stored,
        trainable=bool(member.tensor.requires_grad) and member.kind == "parameter",
        tied=tied,
    )


def _live(model: Any, program: Any, spec: Any) -> Any:
    if spec.kind.name not in {"PARAMETER", "BUFFER", "CONSTANT_TENSOR"}:
        raise UnsupportedError(f"the graph needs a {spec.kind.name.lower()}, which is no tensor")
    live = model
    for part in spec.target.split("."):
        live = getattr(live, part, None)
    if isinstance(live, torch.Tensor) and spec.kind.name != "CONSTANT_TENSOR":
        return live
    kept = program.constants if spec.target in program.constants else program.state_dict
    return kept[spec.target]


def _paths(value: Any, label: str, source: str) -> list[tuple[str, str]]:
    """(for people, for PyTorch) names of the leaves of an argument, in order."""
    if isinstance(value, dict):
        parts = [(each, f"[{key!r}]") for key, each in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(each, f"[{number}]") for number, each in enumerate(value)]
    else:
        return [(label, source)]
    return [path for each, suffix in parts for path in _paths(each, label + suffix, source + suffix)]


def _bound(upper: Any) -> int | None:
    try:
        value = int(upper)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return value if value < 2**48 else None


def _results(spec: Any, results: Iterator[Any]) -> Any:
    """The tree of a result whose type PyTorch knows; classes of results become records."""
    if spec.type is None:
        return next(results)
    children = spec.children() if hasattr(spec, "children") else spec.children_specs
    parts = [_results(child, results) for child in children]
    context = spec._context if hasattr(spec, "_context") else spec.context
    if spec.type in {list, tuple}:
        return {spec.type.__name__: parts}
    kind = context if spec.type is namedtuple else spec.type  # noqa: PYI024 — it is how torch marks such tuples
    if isinstance(kind, type) and issubclass(kind, tuple):
        fields = getattr(kind, "_fields", None)
        pairs = [[n, part] for n, part in zip(fields or (), parts, strict=fields is not None)]
        return {"tuple": parts} if fields is None else {"record": pairs}
    if issubclass(spec.type, dict) and isinstance(context, list) and all(isinstance(key, str) for key in context):
        kind = "dict" if spec.type in {dict, OrderedDict} else "record"
        return {kind: [[key, part] for key, part in zip(context, parts, strict=True)]}
    raise UnsupportedError(
        f"the model returns a {spec.type.__name__}",
        expected="tensors, in lists, tuples, dictionaries with texts as keys",
    )
