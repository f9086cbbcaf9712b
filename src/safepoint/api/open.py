"""`safepoint.open`: any file or snapshot as a mapping from names to tensors that are read when they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
from numpy.typing import NDArray

from safepoint.adapters import framework_of
from safepoint.api.sources import locate
from safepoint.errors import NotFoundError, UnsupportedError
from safepoint.formats import Contents
from safepoint.repository import Manifest, ModelFile, Repository, Snapshot
from safepoint.tree import StateTree, Tensor, TensorSpec, Value, dtype_of, nearest, notebook_table, take

_ROWS = 50  # of a notebook's table

if TYPE_CHECKING:
    from safepoint.api.compare import Difference
    from safepoint.api.stats import Stats


def open(source: str | os.PathLike[str] | Repository, *, at: str | int = "latest") -> Tensors:
    """Open anything that holds tensors: a repository (`PATH@best`), a whole-model file, or a file of anyone's.

    Nothing in it is run, no framework is needed, and no tensor is read before it is used. Where the file carries
    checksums, what is read is verified: blocks of repositories and model files always.

    Args:
        source: the path; of a repository, with or without a reference.
        at: which snapshot, if it is a repository.

    Returns:
        A read-only mapping, name → `LazyTensor`; a context manager that closes the files.

    Raises:
        NotFoundError: nothing is there.
        UnsupportedError: a format, or part of one, that is not read; says what would help.
        CorruptionError: it is not what it claims to be.
    """
    found = locate(source, at)
    if isinstance(found, Contents):
        return _of_contents(found)
    if isinstance(found, ModelFile):
        return _of_model(found)
    return _of_snapshot(*found)


@final
class LazyTensor:
    """A tensor that is read when it is used: `tensor[:10]`, `tensor.numpy()`, `numpy.asarray(tensor)`.

    Attributes:
        name: in the mapping.
        spec: shape and dtype, in safepoint's words.
    """

    __slots__ = ("_tensor", "name", "spec")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.spec = tensor.spec
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype (`ml_dtypes`' where NumPy has none); raw bytes where neither has one: see `spec.dtype`."""
        return dtype_of(self.spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.spec.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.spec.num_elements

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.spec.num_bytes

    def numpy(self) -> NDArray[Any]:
        """All of it, in memory of its own.

        Raises:
            CorruptionError: the bytes are not what was written.
        """
        return self._tensor.numpy()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """A part, by whole numbers, slices and `...`; reads little more than that part."""
        return take(self._tensor, index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 — NumPy's protocol
        if copy is False:
            raise ValueError("a lazy tensor is read into new memory: there is nothing to share")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.spec.shape:
            raise TypeError("a tensor without axes has no length")
        return self.spec.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        source = self if self._tensor.read_range is not None else self.numpy()  # can only be read as a whole
        return (source[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{self.name}: {self.spec}>"


@final
class Tensors(Mapping[str, LazyTensor]):
    """What `safepoint.open` returns: name → tensor, read when it is used.

    Attributes:
        kind: what was opened: "snapshot", "model", or the format of a foreign file ("safetensors").
        title: the same in words.
        framework: whose it is, or "".
        location: where it is.
        tree: tensors and plain values, as a state tree.
        metadata: what is said beside them; plain data.
    """

    def __init__(
        self,
        tree: StateTree,
        *,
        kind: str,
        title: str,
        framework: str,
        location: str,
        metadata: Mapping[str, Any],
        source: Manifest | ModelFile | Contents,
        resources: ExitStack,
    ) -> None:
        self.kind = kind
        self.title = title
        self.framework = framework
        self.location = location
        self.tree = tree
        self.metadata = metadata
        self.source = source
        self._resources = resources
        self._tensors = tree.tensors
        self._closed = False

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name → shape and dtype."""
        return {name: tensor.spec for name, tensor in self._tensors.items()}

    @cached_property
    def plain(self) -> Mapping[str, Value]:
        """Name → plain value (numbers, text, None) of what is no tensor: a step, a learning rate."""
        names = [name for name in self.tree.leaves if name not in self._tensors]
        loaded = self.source.load(names).leaves if names else {}
        return {name: leaf for name in names if not isinstance(leaf := loaded[name], Tensor)}

    def __getitem__(self, name: str) -> LazyTensor:
        if self._closed:
            raise UnsupportedError(f"{self.location} was closed", hint="read inside the with block")
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._no_such(name)
        return LazyTensor(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        return f"<{self.title} {self.location}: {len(self)} tensors, {self.tree.num_bytes:,} bytes>"

    def _repr_html_(self) -> str:
        rows = [
            (name, spec.dtype, list(spec.shape), f"{spec.num_bytes:,}")
            for name, spec in islice(self.specs.items(), _ROWS)
        ]
        return notebook_table(
            repr(self)[1:-1], ("name", "dtype", "shape", "bytes"), rows, more=max(0, len(self) - _ROWS)
        )

    def stats(self) -> Mapping[str, Stats]:
        """Name → statistics of each tensor that has numbers; reads them all, block by block.

        What is found of a snapshot's blocks is kept in the repository's folder `derived/`, where it can be written to.

        Raises:
            CorruptionError: one is not what was written.
        """
        from safepoint.api.stats import measure

        return measure(self._tensors, source=self.source)

    def diff(self, other: Tensors, *, rename: Mapping[str, str] | None = None) -> Difference:
        """What differs in `other`, as `safepoint diff` shows it.

        Args:
            other: what it became.
            rename: regular expression → replacement, over the names here.

        Raises:
            MismatchError: a rule matches nothing, or makes two names one.
            CorruptionError: one of them is not what was written.
        """
        from safepoint.api.compare import compare

        return compare(self, other, rules=rename)

    def close(self) -> None:
        """Close the files; arrays that were read stay. Harmless when repeated."""
        self._closed = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _no_such(self, name: str) -> NoSuchNameError:
        close = nearest(str(name), self._tensors)
        if name in self.tree.leaves:
            hint = "it is a plain value: .plain has it"
        else:
            hint = f"did you mean {close!r}?" if close else "iterate over it for the names"
        return NoSuchNameError(f"{self.location} has no tensor {str(name)[:80]!r}", hint=hint)


class NoSuchNameError(NotFoundError, KeyError):
    """A mapping has no such name: `in`, `get` and `except KeyError` work as with any mapping."""


def _of_contents(contents: Contents) -> Tensors:
    resources = ExitStack()
    resources.callback(contents.close)
    return Tensors(
        contents.tree,
        kind=contents.kind,
        title=contents.title,
        framework=contents.framework,
        location=contents.location,
        metadata=contents.metadata,
        source=contents,
        resources=resources,
    )


def _of_model(model: ModelFile) -> Tensors:
    return Tensors(
        model.tree,
        kind="model",
        title="safepoint model",
        framework=framework_of(model.format),
        location=model.path,
        metadata={"format": model.format, "structure": model.structure},
        source=model,
        resources=ExitStack(),
    )


def _of_snapshot(repository: Repository, reference: str | int) -> Tensors:
    with ExitStack() as stack:
        stack.enter_context(repository.reading())  # nothing of it is collected while it is open
        snapshot = repository.resolve(reference)
        manifest = repository.manifest(snapshot)
        return Tensors(
            manifest.tree,
            kind="snapshot",
            title="safepoint snapshot",
            framework="",
            location=f"{repository.location}@id:{snapshot.number}",
            metadata=_facts(snapshot),
            source=manifest,
            resources=stack.pop_all(),
        )


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "step": snapshot.step,
        "time": snapshot.time.isoformat(),
        "metrics": dict(snapshot.metrics),
        "tags": list(snapshot.tags),
        "config": snapshot.config,
        "environment": dict(snapshot.environment),
    }
