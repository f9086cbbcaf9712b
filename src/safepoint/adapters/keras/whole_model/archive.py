"""Native `.keras` files: the same structure and state tree that safepoint's own files have, read by the same safe path.

Invariant: Keras' own loader is never called, nothing is extracted to disk, and no name from the file becomes a path.
Source: `keras.src.saving.saving_lib` (3.15).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from safepoint.adapters.keras.optimizers import inner_optimizers
from safepoint.adapters.keras.state import State, survey
from safepoint.adapters.keras.whole_model.container import ASSETS, CONFIG, METADATA, WEIGHTS, Container, open_container
from safepoint.adapters.keras.whole_model.structure import KIND, VERSION
from safepoint.adapters.protocol import Scope
from safepoint.codec.hdf5 import datasets, is_variable, opened_hdf5, read_into, spec_of
from safepoint.errors import CorruptionError, MismatchError, UnsupportedError
from safepoint.store import aligned_buffer
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, join_name

_VOCABULARY = "vocabulary.txt"


@final
@dataclass(frozen=True, slots=True)
class Archive:
    """An opened `.keras` file.

    Attributes:
        path: where it is.
        structure: how to rebuild the model; data, to be checked before use.
        specs: Keras' name of each variable → what is stored.
    """

    path: str
    structure: dict[str, Any]
    specs: Mapping[str, TensorSpec]
    container: Container

    def load(self, model: Any) -> StateTree:
        """The state by the names that `model`, built from the structure, has for it; in fresh memory.

        Raises:
            MismatchError: the weights are another model's.
            CorruptionError: something is not what was written.
        """
        state = survey(model, Scope())
        names = dict(self._names(state))
        leaves: dict[str, Leaf] = {}
        weights: dict[str, list[float]] = {}
        with self.container.weights() as file, opened_hdf5(file, self.path) as opened:
            found = datasets(opened, file, self.path)
            for theirs, spec in self.specs.items():
                data = aligned_buffer(spec.num_bytes)
                read_into(found[theirs], spec, data, self.path)
                tensor = Tensor.of_bytes(data, spec)
                if theirs in names:
                    leaves[names[theirs]] = tensor
                else:
                    weights[theirs] = tensor.numpy().astype(float).ravel().tolist()
        leaves.update(_merged(state, leaves))
        leaves.update(self._assets(state, weights))
        return StateTree(leaves)

    def _names(self, state: State) -> Iterator[tuple[str, str]]:
        """Keras' name of each dataset → ours.

        Raises:
            MismatchError: a dataset belongs to nothing in the model.
        """
        ours = {id(variable): name for name, variable in reversed(state.variables.items())}
        optimizer_names: dict[str, str] = {}
        for path, optimizer in _all_optimizers(state):
            place = join_name(path, "vars")
            stored = sum(name.startswith(f"{place}/") for name in self.specs)
            scalars = sum(len(variable.shape) == 0 for variable in optimizer.variables)
            if stored not in {0, len(optimizer.variables)} and stored > scalars:
                raise self._other_model(place, f"{len(optimizer.variables)} variables", f"{stored} variables")
            for index, variable in enumerate(optimizer.variables):
                optimizer_names[f"{place}/{index}"] = ours[id(variable)]
        for name in self.specs:
            if name in optimizer_names:
                yield name, optimizer_names[name]
            elif name in state.variables or any(name.startswith(f"{place}/") for place in state.stores):
                yield name, name
            elif not name.endswith("/idf_weights"):
                raise self._other_model(name, "a variable of the model", "none of that name")

    def _assets(self, state: State, weights: Mapping[str, list[float]]) -> Iterator[tuple[str, Leaf]]:
        """Vocabularies as the values that our own files keep, and files of custom layers."""
        members = self.container.members
        for name in state.assets:
            path = name.rpartition("/")[0]
            member = f"{ASSETS}{join_name(path, _VOCABULARY)}"
            if member not in members:
                continue
            text = self._text(member)
            layer = state.layers[path]
            tokens: list[Any] = text.splitlines()
            while tokens and tokens[-1] == "":
                tokens.pop()
            if str(layer.vocabulary_dtype) != "string":
                tokens = self._integers(tokens, member)
            value: dict[str, Any] = {"vocabulary": tokens}
            if layer.output_mode == "tf_idf" and tokens:
                value["idf_weights"] = weights.get(join_name(path, "vars/idf_weights"), [])[: len(tokens)]
            yield name, json.dumps(value, ensure_ascii=False)
        for place in state.files:
            prefix = f"{ASSETS}{place.rpartition('/')[0]}/"
            for member in members:
                if member.startswith(prefix) and not member.endswith("/"):
                    yield join_name(place, member.removeprefix(prefix)), self.container.text(member)

    def _text(self, member: str) -> str:
        try:
            return self.container.text(member).decode()
        except UnicodeDecodeError as error:
            raise CorruptionError(f"{member} in {self.path} is not text", file=self.path, found=error) from error

    def _integers(self, tokens: list[str], member: str) -> list[int]:
        try:
            return [int(token) for token in tokens]
        except ValueError as error:
            raise CorruptionError(
                f"{member} in {self.path} is no list of numbers", file=self.path, found=error
            ) from error

    def _other_model(self, name: str, expected: str, found: str) -> MismatchError:
        return MismatchError(
            f"the weights in {self.path} do not fit the model that it describes ({name})",
            unexpected=[name],
            expected=expected,
            found=found,
            hint="if it was written by an older Keras, load it with that one and save it with safepoint.save_model",
        )


def _merged(state: State, leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """LoRA factors are not in such files: Keras has merged them into the kernel, and starts them again at zero."""
    for name, variable in state.variables.items():
        if name not in leaves and name.rpartition("/")[2].startswith("lora_"):
            spec = TensorSpec(tuple(variable.shape), str(variable.dtype))
            yield name, Tensor.of_bytes(aligned_buffer(spec.num_bytes), spec)


def _all_optimizers(state: State) -> Iterator[tuple[str, Any]]:
    """Wrapped ones too: Keras writes their variables twice."""
    found = list(state.optimizers.items())
    while found:
        path, optimizer = found.pop()
        yield path, optimizer
        found += [(join_name(path, name), inner) for name, inner in inner_optimizers(optimizer)]


def read_archive(path: str) -> Archive:
    """Open a `.keras` file: checks the archive, reads its configuration and the list of its weights, builds nothing.

    Raises:
        CorruptionError: it is damaged, or made to mislead a reader.
        UnsupportedError: weights in another format, or h5py is missing.
    """
    container = open_container(path)
    if WEIGHTS not in container.members:
        raise UnsupportedError(
            f"{path} has no {WEIGHTS}",
            found=", ".join(sorted(container.members)[:5]),
            hint="save it again with weights in HDF5, Keras' default",
        )
    metadata = _json(container, METADATA)
    structure = {
        "kind": KIND,
        "version": VERSION,
        "keras_version": str(metadata.get("keras_version"))[:40],
        "backend": None,
        "config": _json(container, CONFIG),
    }
    with container.weights() as file, opened_hdf5(file, path) as opened:
        found = {name: spec_of(dataset) for name, dataset in datasets(opened, file, path).items() if is_variable(name)}
    return Archive(path, structure, found, container)


def _json(container: Container, name: str) -> dict[str, Any]:
    try:
        document = json.loads(container.text(name))
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{name} in {container.path} is not JSON", file=container.path, found=error) from error
    if not isinstance(document, dict):
        raise CorruptionError(f"{name} in {container.path} is not an object", file=container.path)
    return document
