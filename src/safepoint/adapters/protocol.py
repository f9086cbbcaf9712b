"""What an adapter is: a module with these functions. `safepoint.testing.adapter_suite` tests any of them.

Invariant: `to_tree` and `template` change nothing; `from_tree` is called only with leaves that matched `template`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

from safepoint.tree import StateTree, Tensor


@final
@dataclass(frozen=True, slots=True)
class Scope:
    """What an adapter may know of the other objects of a checkpoint.

    Attributes:
        owners: `id(parameter)` → its full name in this checkpoint (`model/encoder.weight`), so that optimizer
            state is kept by owner and slot, never by an index.
        separate: `id(object)` of every object tracked under a name of its own: whoever contains one (a compiled
            model its optimizer) leaves it out.
    """

    owners: Mapping[int, str] = field(default_factory=dict)
    separate: frozenset[int] = frozenset()


@final
@dataclass(frozen=True, slots=True)
class TensorKind:
    """How a framework's tensors appear inside dictionaries and lists.

    Attributes:
        kind: the word kept in the skeleton ("torch", "numpy", ...).
        is_tensor: whether an object is one; its type alone decides.
        to_leaf: the live leaf of one (`write` where it can be changed in place).
        build: a new tensor from a leaf; copies, so that staging can be reused.
        immutable: True where tensors cannot be written in place (JAX).
    """

    kind: str
    is_tensor: Callable[[Any], bool]
    to_leaf: Callable[[Any], Tensor]
    build: Callable[[Tensor], Any]
    immutable: bool = False


@final
@dataclass(frozen=True, slots=True)
class RandomState:
    """A framework's global random state.

    Attributes:
        name: of the state: `random/<name>/...` are its leaves.
        capture: the state as a tree.
        restore: makes a captured tree the state again, exactly.
    """

    name: str
    capture: Callable[[], StateTree]
    restore: Callable[[StateTree], None]


class Processes(Protocol):
    """The processes that train one model together; every call is made by all of them."""

    def world(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        ...

    def gather(self, data: bytes) -> list[bytes]:
        """What each process gave, by rank."""
        ...

    def broadcast(self, data: bytes) -> bytes:
        """What the first process gave."""
        ...


class Adapter(Protocol):
    """A module that turns live objects of one framework into state trees and back.

    Optional functions:
        examine(tree, like, scope): raises MismatchError for what only the content of a tree can tell; changes nothing.
        before_step(obj, call): makes `call()` run before each step of an optimizer; returns what undoes that, or None
            where `obj` is none.
        ignorable(like, saved, scope): names in `saved` that `like` may do without.
        opaque(obj): whether `from_tree` runs code of the user's for this object, though not for all (see `OPAQUE`).
        per_rank(obj): whether each of several processes has its own state of it.
        is_model(obj): whether `save_model` can keep it, in a file of format `FORMAT`.
        immutable(obj): whether `from_tree` makes a new value; such objects are passed at each save, and are one object
            even where they are dictionaries and lists.
        advice(like, saved, scope, differs): why the names differ, or what to do about (live, saved) specs whose
            dtypes differ, where there is more to say than that; or None.
        stepped(obj): memory that only those steps change: (address, bytes) → whether it changed since this call.
        to_come(obj): bytes of state that `obj` will have after the first training step and has not yet, about.
        refuse(obj): raises UnsupportedError when the object is tracked, before anything is saved.
    Optional attributes:
        TENSOR_KINDS: tuple[TensorKind, ...].
        RANDOM_STATES: tuple[RandomState, ...].
        FORMAT: what whole-model files of this framework say in their metadata.
    """

    OPAQUE: bool
    """True where `from_tree` runs code of the user's (`load_state_dict`), which may raise."""

    def handles(self, obj: Any) -> bool:
        """Whether this adapter captures `obj`."""
        ...

    def owners(self, obj: Any) -> Iterable[tuple[str, Any]]:
        """The trainable tensors of `obj` with their names relative to it, for `Scope.owners`; empty for non-models."""
        ...

    def to_tree(self, obj: Any, scope: Scope) -> StateTree:
        """The state of `obj`: live leaves, names relative to it. Nothing is copied that can be viewed.

        Raises:
            UnsupportedError: something in it cannot be captured; the message has its path.
        """
        ...

    def template(self, like: Any, saved: StateTree, scope: Scope) -> StateTree:
        """What `like` would accept from `saved`.

        That is `to_tree(like)`, plus what can be created (optimizer slots, unbuilt models). Changes nothing; leaves
        that do not exist yet have no `write`.

        Raises:
            MismatchError: `like` cannot take a state of this kind at all.
            UnsupportedError: `like` must be built first ("call it once").
        """
        ...

    def from_tree(self, tree: StateTree, like: Any, scope: Scope) -> Any:
        """Put the leaves of `tree`, all of which `template` accepted, into `like`; returns it, or a new value.

        Leaves that `tree` lacks stay as they are. Bytes are copied: the caller reuses them.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class SaveRequest:
    """What a caller of `save_model` gives beside the model; each framework refuses what it has no use for.

    Attributes:
        example_inputs: positional inputs, from which a graph is made that runs without the model's source.
        optimizer: whose state goes into the file too.
        init: constructor arguments of the model's class.
        params: the pytree of parameters that a function is called with (JAX).
    """

    example_inputs: Any = None
    optimizer: Any = None
    init: Mapping[str, Any] | None = None
    params: Any = None


@final
@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a caller of `load_model` wants, and allows.

    Attributes:
        where: the file, for messages.
        form: "class" builds the model's class, "graph" the exported graph; "auto" prefers the class.
        device: where to put it; None: the framework's default.
        dtype: of its floating-point weights; None: as saved.
        custom_objects: name → class or function that the file may name.
        trust: prefixes of imported modules whose classes and functions the file may name.
    """

    where: str
    form: Literal["auto", "class", "graph"] = "auto"
    device: Any = None
    dtype: Any = None
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    trust: tuple[str, ...] = ()


class WholeModels(Protocol):
    """A module that takes whole models of one framework apart, and puts them together again.

    Tensors of the state go by the model's own names; what else a structure needs (constants of a graph, its bytes) has
    names that begin with `__safepoint__/`, which other tools never see as the model's.

    Optional functions:
        folder_config(model): what `config.json` says beside a model that is saved into a folder, where another library
            expects it there; None: the structure.

    Optional attributes:
        MAPS: True where tensors that `load` gives may be pages of the file.
    """

    def take_apart(self, model: Any, request: SaveRequest) -> tuple[dict[str, Any], StateTree]:
        """Structure, as plain JSON that names things and contains no code, and state of a model.

        Raises:
            UnsupportedError: the model cannot be kept; the message says why, and the ways out.
        """
        ...

    def put_together(
        self,
        structure: Mapping[str, Any],
        saved: StateTree,
        load: Callable[[Iterable[str]], StateTree],
        request: LoadRequest,
    ) -> Any:
        """The model that `take_apart` saw. `load` reads tensors of `saved` into memory that the model may keep.

        Raises:
            UntrustedError: the structure names what nobody allowed; nothing was imported or run.
            MismatchError: a class is no longer what it was when the model was saved.
            UnsupportedError: the request cannot be met; the message says which part.
        """
        ...
