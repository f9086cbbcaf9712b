"""A file names things: what may be named, by whom, and what is never built whoever passes it."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import keras
import pytest
from tests.attacks.watching import watched
from tests.whole_model.models import X, Y, assert_same, compiled

import safepoint
from safepoint.adapters.keras.whole_model.structure import build, describe
from safepoint.repository.model_file import read_model_file, write_model_file


class Unknown(keras.layers.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), name="weight")

    def call(self, x):
        return x * self.weight * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@safepoint.register("tests.scaled")
def scaled(x):
    return 2 * x


def unknown_activation(x):
    return 3 * x


@safepoint.register
class KnownLayer(Unknown):
    pass


@pytest.fixture
def saved(tmp_path):
    model = compiled(keras.layers.Dense(4, activation=unknown_activation), Unknown(3.0))
    safepoint.save_model(model, tmp_path / "model")
    safepoint.load_model(tmp_path / "model", trust=(__name__,))  # what is imported late is imported now
    return model, tmp_path / "model"


def test_a_class_nobody_allowed_is_refused_by_name_with_the_ways_to_allow_it(saved):
    with watched(saved[1]), pytest.raises(safepoint.UntrustedError) as caught:
        safepoint.load_model(saved[1])
    text = str(caught.value)
    for word in ("unknown_activation", "custom_objects=", "trust=", "@safepoint.register", str(saved[1])):
        assert word in text


@pytest.mark.parametrize(
    "allow",
    [
        {"custom_objects": {"Unknown": Unknown, "unknown_activation": unknown_activation}},
        {"trust": (__name__,)},
        {"trust": __name__.rpartition(".")[0] or __name__},
        {
            "trust": ("tests", "test_trust"),
            "custom_objects": {"Unknown": Unknown, "unknown_activation": unknown_activation},
        },
    ],
)
def test_each_way_to_allow_it_works(saved, allow):
    model, path = saved
    assert_same(safepoint.load_model(path, **allow), model)


def test_registered_classes_and_functions_load_without_being_told(tmp_path):
    model = compiled(keras.layers.Dense(4, activation=scaled), KnownLayer(4.0))
    safepoint.save_model(model, tmp_path / "model")
    assert '"tests.scaled"' in read_model_file(tmp_path / "model").structure.__repr__().replace("'", '"')
    loaded = safepoint.load_model(tmp_path / "model")
    assert type(loaded.layers[1]) is KnownLayer
    assert_same(loaded, model)
    model.save(tmp_path / "model.keras")
    assert safepoint.load_model(tmp_path / "model.keras").layers[0].activation is scaled


def test_two_things_cannot_have_one_registered_name():
    with pytest.raises(safepoint.ExistsError, match=r"tests\.scaled"):
        safepoint.register("tests.scaled")(unknown_activation)
    safepoint.register("tests.scaled")(scaled)
    with pytest.raises(safepoint.UnsupportedError):
        safepoint.register(lambda x: x)


def test_trust_means_what_a_module_defines_not_what_it_imported(saved, monkeypatch):
    module = types.ModuleType("trusted_by_test")
    exec("import os, subprocess\nfrom os import system\nfrom subprocess import Popen", vars(module))
    monkeypatch.setitem(sys.modules, "trusted_by_test", module)
    for name in ("system", "Popen", "os"):
        entry = {"module": "trusted_by_test", "class_name": "function", "config": name, "registered_name": name}
        with pytest.raises(safepoint.UntrustedError, match=name):
            build(_with(activation=entry), trust=("trusted_by_test",))


def test_a_class_that_changed_since_is_a_mismatch_that_says_so(saved):
    class Unknown(keras.layers.Layer):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)

        def build(self, shape):
            self.other = self.add_weight(shape=(shape[-1], 2), name="other")

        def call(self, x):
            return x

    with pytest.raises(safepoint.MismatchError, match="unknown/vars/0") as caught:
        safepoint.load_model(saved[1], custom_objects={"Unknown": Unknown, "unknown_activation": unknown_activation})
    assert "changed since it was saved" in str(caught.value)


_BASE: dict[str, Any] = {}


def _base() -> dict[str, Any]:
    if not _BASE:
        _BASE.update(describe(compiled(keras.layers.Dense(4, activation="relu"))))
    return copy.deepcopy(_BASE)


def _with(**fields: Any) -> dict[str, Any]:
    structure = _base()
    structure["config"]["config"]["layers"][1]["config"].update(fields)
    return structure


def _layer(module: str | None, name: str, config: Any) -> dict[str, Any]:
    structure = _base()
    entry = {"module": module, "class_name": name, "config": config, "registered_name": name}
    structure["config"]["config"]["layers"].append(entry)
    return structure


def _legacy(name: str, config: Any) -> dict[str, Any]:
    structure = _base()
    structure["config"]["config"]["layers"].append({"class_name": name, "config": config})
    return structure


def _function(module: str, name: str) -> dict[str, Any]:
    return _with(activation={"module": module, "class_name": "function", "config": name, "registered_name": name})


def _nested(levels: int) -> Any:
    node: dict[str, Any] = {}
    for _ in range(levels):
        node = {"a": node}
    return node


_BYTECODE = ["4wEAAAAAAAAAAAAAAAEAAAADAAAA8wYAAACXAHwAUwCpAU4=", None, None]
_LAMBDA = {"class_name": "__lambda__", "config": {"value": _BYTECODE}}
_PRIVATE = "keras.src.layers.core.lambda_layer"
_TYPESPEC = {"class_name": "__typespec__", "spec_name": "system", "module": "os", "config": [], "registered_name": None}
HOSTILE = {
    "a Lambda layer": lambda: _layer("keras.layers", "Lambda", {"function": _LAMBDA}),
    "a Lambda layer of a named function": lambda: _layer("keras.layers", "Lambda", {"function": "relu"}),
    "a Lambda layer by its private module": lambda: _layer(_PRIVATE, "Lambda", {"function": "relu"}),
    "a Lambda layer in the legacy form": lambda: _legacy("Lambda", {"function": _BYTECODE, "function_type": "lambda"}),
    "a lambda as activation": lambda: _with(activation=_LAMBDA),
    "a lambda as loss": lambda: {**_base(), "config": {**_base()["config"], "compile_config": {"loss": _LAMBDA}}},
    "os.system": lambda: _function("os", "system"),
    "os.system as a layer": lambda: _layer("os", "system", {"command": "true"}),
    "posix.system": lambda: _function("posix", "system"),
    "builtins.eval": lambda: _function("builtins", "eval"),
    "subprocess.Popen": lambda: _layer("subprocess", "Popen", {"args": ["true"]}),
    "a module that is not imported": lambda: _layer("antigravity", "Layer", {}),
    "a module inside keras that is not imported": lambda: _layer("keras.src.nothing_there", "Layer", {}),
    "keras.utils.get_file": lambda: _function("keras.utils", "get_file"),
    "keras.config.enable_unsafe_deserialization": lambda: _function("keras.config", "enable_unsafe_deserialization"),
    "the same as a layer": lambda: _layer("keras.config", "enable_unsafe_deserialization", {}),
    "keras.models.load_model": lambda: _function("keras.models", "load_model"),
    "keras.callbacks.LambdaCallback": lambda: _layer("keras.callbacks", "LambdaCallback", {}),
    "a module of keras": lambda: _layer("keras", "layers", {}),
    "what keras imported": lambda: _layer("keras.src.utils.file_utils", "os", {}),
    "TFSMLayer": lambda: _layer("keras.layers", "TFSMLayer", {"filepath": "/tmp"}),
    "TorchModuleWrapper": lambda: _layer("keras.layers", "TorchModuleWrapper", {"module": "gASV"}),
    "JaxLayer": lambda: _layer("keras.layers", "JaxLayer", {"call_fn": "x"}),
    "FlaxLayer": lambda: _layer("keras.layers", "FlaxLayer", {"module": "x"}),
    "a vocabulary that is a path": lambda: _layer("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
    "a vocabulary that is a URL": lambda: _layer("keras.layers", "TextVectorization", {"vocabulary": "http://127.0.0.1/x"}),
    "an unknown legacy name": lambda: _legacy("Nothing", {}),
    "an unknown typed value": lambda: _with(units={"class_name": "__pickle__", "config": {"value": "x"}}),
    "a typespec of os": lambda: _with(units=_TYPESPEC),
}  # fmt: skip
_HUGE = {"class_name": "__numpy__", "config": {"value": [1], "dtype": "U999999999"}}
MALFORMED = {
    "a dtype that would allocate": lambda: _with(units=_HUGE),
    "a name that is no text": lambda: _with(units={"class_name": 5, "config": {}}),
    "nesting without end": lambda: _with(x=_nested(900)),
    "no configuration": lambda: {**_base(), "config": None},
    "another kind": lambda: {**_base(), "kind": "torch"},
}  # fmt: skip
IMPOSSIBLE = {
    "units that fit into no memory": lambda: _with(units=10**15),
    "units that are no number": lambda: _with(units="many"),
    "a newer version": lambda: {**_base(), "version": 99},
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("unsafe", [False, True], ids=["", "after enable_unsafe_deserialization"])
def test_a_hostile_structure_is_refused_and_nothing_runs(what, unsafe):
    structure = HOSTILE[what]()
    build(_base())  # whatever Keras imports late is imported now
    if unsafe:
        keras.config.enable_unsafe_deserialization()
    try:
        with watched(None), pytest.raises(safepoint.UntrustedError):
            build(structure)
    finally:
        keras.src.backend.common.global_state.set_global_attribute("safe_mode_saving", None)


@pytest.mark.parametrize(
    "what", [w for w in HOSTILE if "Lambda layer" in w or w in {"TFSMLayer", "TorchModuleWrapper"}]
)
def test_no_argument_of_the_caller_lifts_what_is_denied(what):
    allowed = {"Lambda": keras.layers.Lambda, "TFSMLayer": keras.layers.TFSMLayer}
    with pytest.raises(safepoint.UntrustedError):
        build(HOSTILE[what](), custom_objects=allowed, trust=("keras", "os", "subprocess"))


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_structure_is_corruption(what):
    with watched(None), pytest.raises(safepoint.CorruptionError):
        build(MALFORMED[what]())


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_structure_is_unsupported(what):
    with pytest.raises(safepoint.UnsupportedError):
        build(IMPOSSIBLE[what]())


@pytest.mark.parametrize("what", ["a Lambda layer", "os.system", "a vocabulary that is a path"])
def test_the_same_in_a_file_reads_the_file_and_nothing_else(what, tmp_path):
    path = tmp_path / "model"
    safepoint.save_model(compiled(keras.layers.Dense(4)), path)
    good = read_model_file(path)
    safepoint.load_model(path)  # what is imported late is imported now
    write_model_file(path, good.load(), structure=HOSTILE[what](), format="keras")
    with watched(path), pytest.raises(safepoint.UntrustedError, match=str(path)):
        safepoint.load_model(path)


def test_a_vocabulary_value_that_is_a_path_is_not_opened(tmp_path):
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    path = tmp_path / "model"
    safepoint.save_model(keras.Sequential([keras.Input((1,), dtype="string"), lookup]), path)
    good = read_model_file(path)
    (name,) = [n for n in good.tree.leaves if n.endswith("vocabulary")]
    tree = type(good.tree)({**good.load().leaves, name: '{"vocabulary": "/etc/passwd"}'}, good.tree.skeleton)
    write_model_file(path, tree, structure=good.structure, format="keras")
    with pytest.raises(safepoint.UntrustedError, match="vocabulary"):
        safepoint.load_model(path)


def test_what_the_walk_does_not_see_is_stopped_where_keras_looks_names_up():
    @keras.saving.register_keras_serializable("tests")
    class Hides(keras.layers.Layer):
        @classmethod
        def from_config(cls, config):
            hidden = {"module": "keras.layers", "class_name": "La" + "mbda", "config": {"function": "relu"}}
            keras.saving.deserialize_keras_object(hidden, safe_mode=False)
            return cls()

    structure = describe(keras.Sequential([keras.Input((3,)), Hides()]))
    with pytest.raises(safepoint.UntrustedError, match="Lambda"):
        build(structure)


def test_legacy_entries_without_modules_are_built_the_same_way():
    structure = _base()
    for layer in structure["config"]["config"]["layers"]:
        del layer["module"], layer["registered_name"]
    before = copy.deepcopy(structure)
    model = build(structure)
    assert [type(layer).__name__ for layer in model.layers] == ["Dense", "Dense"]
    assert structure == before
    model.fit(X, Y, verbose=0)
