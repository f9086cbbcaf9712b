"""Files that nobody honest wrote: each is refused with the right error, before anything in it is run."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import safepoint
from safepoint.errors import CorruptionError, MismatchError, SafepointError, UnsupportedError, UntrustedError
from safepoint.repository.model_file import read_model_file, write_model_file
from safepoint.tree import StateTree, Tensor

TEXT = "__safepoint__/graph/0"


def honest(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"] + params["b"])


class File:
    """An honest file, taken apart, to be put together again with something else in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        params = {"w": jnp.eye(3), "b": jnp.zeros(3)}
        safepoint.save_model(honest, path, params=params, example_inputs=(jnp.ones((2, 3)),))
        file = read_model_file(path)
        self.structure = file.structure
        self.leaves = {name: Tensor.of(leaf.numpy().copy()) for name, leaf in file.tree.tensors.items()}
        self.skeleton = file.tree.skeleton
        self.text = bytes(file.tree.tensors[TEXT].read()).decode()

    def load(
        self,
        *,
        text: str | bytes | None = None,
        graph: Callable[[Any], object] | None = None,
        structure: Callable[[Any], object] | None = None,
        leaves: dict[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Write a file with honest digests around what was changed, and load it."""
        changed = copy.deepcopy(self.structure)
        if graph is not None:
            graph(changed["graph"])
        if structure is not None:
            structure(changed)
        found = dict(self.leaves)
        if text is not None:
            found[TEXT] = Tensor.of(np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8))
        found.update({name: Tensor.of(array) for name, array in (leaves or {}).items()})
        path = self.path.with_name("hostile")
        write_model_file(path, StateTree(found, self.skeleton), structure=changed, format="jax")
        return safepoint.load_model(path, **more)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(tmp_path_factory.mktemp("hostile") / "honest")


def test_the_honest_file_loads(file: File) -> None:
    x = jnp.ones((5, 3))
    assert jnp.allclose(file.load()(x), jnp.tanh(x))


def with_operation(text: str, operation: str) -> str:
    """The graph with one more operation, before its tanh."""
    place = re.search(r"\n *%\w+ = \"stablehlo.tanh\"\((%\w+)\)", text)
    assert place is not None
    return (
        text[: place.start()]
        + "\n"
        + re.sub(r"\bT\b", "tensor<?x3xf32>", operation).replace("%x", place[1])
        + text[place.start() :]
    )


CALL = '%9999 = "stablehlo.custom_call"(%x) <{{call_target_name = "{}"}}> : (tensor<?x3xf32>) -> tensor<?x3xf32>'
IOTA = '%9999 = "stablehlo.iota"() <{{iota_dimension = 0 : i64}}> : () -> tensor<{}xf32>'
TOKEN = '%9998 = "stablehlo.create_token"() : () -> !stablehlo.token'


@pytest.mark.parametrize(
    "target",
    [
        "xla_ffi_python_cpu_callback", "lapack_sgetrf_ffi", "tpu_custom_call", "mosaic_gpu_v2", "__gpu$xla.gpu.triton",
        "annotate_device_placement", "AllocateBuffer", "tf.call_tf_function", "shape_assertion", "system", "",
    ],
)  # fmt: skip
def test_a_custom_call_that_is_not_xlas_own_is_refused(target: str, file: File) -> None:
    with pytest.raises(UntrustedError, match="custom call"):
        file.load(text=with_operation(file.text, CALL.format(target)))


OPERATIONS: list[tuple[str, type[SafepointError]]] = [
    (TOKEN, SafepointError),
    (CALL.format("shape_assertion").replace('"}>', '", backend_config = "x"}>', 1), UntrustedError),
    ('%9999 = "stablehlo.rng"(%x, %x, %x) : (T, T, T) -> tensor<3xf32>', SafepointError),
    ('%9999 = "stablehlo.partition_id"() : () -> tensor<ui32>', UntrustedError),
    ('%9999 = "stablehlo.tanh"(%x) {mhlo.frontend_attributes = {a = "b"}} : (T) -> T', UntrustedError),
    ('%9999 = "stablehlo.composite"(%x) <{name = "a.b", decomposition = @main}> : (T) -> T', SafepointError),
    ('%9999 = "chlo.tan"(%x) : (T) -> T', UntrustedError),
    ('%9999 = "mhlo.tan"(%x) : (T) -> T', UntrustedError),
    ('%9999 = "nothing.known"(%x) : (T) -> T', CorruptionError),
    ('%9999 = "stablehlo.tanh"(%x) : (T) -> tensor<?x3xf64>', CorruptionError),
    ('%9999 = "stablehlo.tanh"(%x) : (T) -> T loc("/etc/passwd")', CorruptionError),
    ('%9999 = "stablehlo.constant"() <{value = dense_resource<a> : T}> : () -> T', CorruptionError),
    (IOTA.format("99999999x99999999"), CorruptionError),
    (IOTA.format("99999999999999999999"), CorruptionError),
    ('%9999 = "stablehlo.constant"() <{value = ' + "[" * 10_000 + "]" * 10_000 + "}> : () -> T", CorruptionError),
    ('"func.call"() <{callee = @nothing}> : () -> ()', CorruptionError),
    ('"func.call"() <{callee = @main}> : () -> ()', CorruptionError),
]


@pytest.mark.parametrize(("operation", "error"), OPERATIONS, ids=range(len(OPERATIONS)))
def test_an_operation_that_no_graph_may_have_is_refused(operation: str, error: type, file: File) -> None:
    with pytest.raises(error):
        file.load(text=with_operation(file.text, operation))


def test_functions_that_multiply_are_counted_before_they_are_compiled(file: File) -> None:
    call = '"func.call"() <{{callee = @f{}}}> : () -> ()\n'
    body = '"func.func"() <{{function_type = () -> (), sym_name = "f{}", sym_visibility = "private"}}> ({{\n{}'
    body += '"func.return"() : () -> ()\n}}) : () -> ()\n'
    functions = "".join(body.format(n, call.format(n + 1) * 10) for n in range(20)) + body.format(20, "")
    where = file.text.index('"func.func"')
    with pytest.raises(CorruptionError, match="more than 10,000,000 operations"):
        file.load(text=file.text[:where] + functions + file.text[where:])


def test_a_text_that_is_none_is_refused(file: File) -> None:
    for text in (
        "",
        "x",
        "\0",
        "module {}",
        file.text[: len(file.text) // 2],
        file.text + "}",
        "é",
        "ML\xefR\x01",
        '"' * 999,
    ):
        with pytest.raises(CorruptionError):
            file.load(text=text)


def test_changed_texts_are_refused_or_compute_and_never_end_the_process(file: File) -> None:
    """Words exchanged at random; what still passes is StableHLO over the same operations, and computes."""
    words = re.findall(r'"[^"]*"|[%^@#!]?[\w.]+|\s+|.', file.text)
    places = [n for n, word in enumerate(words) if not word.isspace()]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        changed = list(words)
        for place in random.choice(places, 2):
            changed[place] = words[random.choice(places)] if random.random() < 0.8 else ""
        try:
            _ = file.load(text="".join(changed))
        except SafepointError:
            refused += 1
    assert refused > 40


def test_flipped_bits_in_the_file_are_found(file: File, tmp_path: Path) -> None:
    data = bytearray(file.path.read_bytes())
    random = np.random.default_rng(0)
    for place in [*range(8, 40, 8), *random.integers(0, len(data), 60)]:
        changed = bytearray(data)
        changed[place] ^= 1 << random.integers(8)
        (tmp_path / "m").write_bytes(changed)
        try:
            model = safepoint.load_model(tmp_path / "m")
        except SafepointError:
            continue
        assert jnp.allclose(model(jnp.ones((1, 3))), jnp.tanh(1.0))  # padding of the header


def test_a_file_that_is_cut_is_refused(file: File, tmp_path: Path) -> None:
    data = file.path.read_bytes()
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "m").write_bytes(data[:size])
        with pytest.raises(SafepointError):
            safepoint.load_model(tmp_path / "m")


def test_weights_that_are_not_those_of_the_graph_are_refused(file: File) -> None:
    with pytest.raises(MismatchError, match=r"w: float32\[3, 3\] in the graph, float32\[4, 3\]"):
        file.load(leaves={"w": np.ones((4, 3), np.float32)})
    with pytest.raises(MismatchError, match="float16"):
        file.load(leaves={"b": np.ones(3, np.float16)})
    with pytest.raises(MismatchError, match="v: missing"):
        file.load(graph=lambda g: g["tensors"][0].update(name="v"))
    with pytest.raises(MismatchError, match="takes tensor<3x3xf32> at position"):
        file.load(graph=lambda g: g["tensors"].reverse())
    with pytest.raises(MismatchError, match="gives"):
        file.load(graph=lambda g: g["programs"][0].update(outputs=[["b", 4]]))
    with pytest.raises(MismatchError, match="graph/0: missing"):
        file.load(leaves={TEXT: np.ones((2, 2), np.float32)})


CHANGES: list[Callable[[Any], object]] = [
    lambda g: g.update(version=0),
    lambda g: g.update(version="1"),
    lambda g: g.update(convention=9),
    lambda g: g.update(platforms=[]),
    lambda g: g.update(platforms=["cpu", "cpu"]),
    lambda g: g.update(platforms=["abacus"]),
    lambda g: g.update(platforms=["cpu"]),
    lambda g: g.update(tensors={}),
    lambda g: g.update(more=1),
    lambda g: g.pop("inputs"),
    lambda g: g["inputs"].append(g["inputs"][0]),
    lambda g: g["inputs"][0].update(dtype="object"),
    lambda g: g["inputs"][0].update(key="abacus"),
    lambda g: g["inputs"][0].update(constant={"a": 1}),
    lambda g: g["arguments"][0].update(tree={"input": 1}),
    lambda g: g["arguments"][0].update(tree={"input": True}),
    lambda g: g["arguments"][0].update(tree={"call": "os.system"}),
    lambda g: g["arguments"].append(g["arguments"][0]),
    lambda g: g.update(result={"output": 7}),
    lambda g: g.update(result={"list": [{"output": 0}] * 2}),
    lambda g: g["outputs"][0].update(constant=1),
    lambda g: g["programs"].clear(),
    lambda g: g["programs"][0].update(inputs=[["c" * 300, 3]]),
    lambda g: g["programs"][0].update(inputs=[["b^99", 3]]),
    lambda g: g["programs"][0].update(inputs=[["__import__('os')", 3]]),
    lambda g: g["programs"][0].update(inputs=[["b*", 3]]),
    lambda g: g["programs"][0].update(inputs=[["((((((b))))))", 3]]),
    lambda g: g["programs"][0].update(inputs=[["99999999999999*b", 3]]),
    lambda g: g["programs"][0].update(inputs=[["2*b + 1", 3]], outputs=[["z", 3]]),
    lambda g: g["programs"][0].update(inputs=[[-1, 3]]),
    lambda g: g["programs"][0].update(inputs=[[2**60, 3]]),
    lambda g: g["programs"][0].update(text="w"),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_a_document_that_contradicts_itself_is_refused(change: Callable[[Any], object], file: File) -> None:
    with pytest.raises((CorruptionError, MismatchError, UnsupportedError)):
        file.load(graph=change)


def nested(levels: int, wrap: Callable[[Any], Any], inside: Any) -> Any:
    for _ in range(levels):
        inside = wrap(inside)
    return inside


@pytest.mark.parametrize(
    "wrap",
    [lambda i: {"tuple": [i]}, lambda i: {"dict": [["a", i]]}, lambda i: [i], lambda i: {"module": ["a.B", i]}],
    ids=["tuple", "dict", "list", "module"],
)
def test_structures_nested_deep_are_refused(wrap: Callable[[Any], Any], file: File) -> None:
    value: Any = {"input": 0}
    for _ in range(200):
        value = wrap(value)
    with pytest.raises(SafepointError):
        file.load(graph=lambda g: g["arguments"][0].update(tree=value))
    form = {"function": value, "params": 1}
    with pytest.raises(SafepointError):
        file.load(structure=lambda s: s.update({"graph": None, "class": form}), trust=("tests",))


def test_a_structure_nested_ten_thousand_deep_is_refused(file: File) -> None:
    """Put into the text of an honest file: what writes those does not nest so deep."""
    data, old = file.path.read_bytes(), b'\\"graph\\":{'
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert header.count(old) == 1
    many = b'{\\"tuple\\":[' * 10_000 + b"1" + b"]}" * 10_000
    changed = header.replace(old, b'\\"graph\\":' + many + b',\\"other\\":{')
    path = file.path.with_name("deep")
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + len(header) :])
    with pytest.raises(SafepointError):
        safepoint.load_model(path)


NAMES = [
    "os.system", "builtins.eval", "subprocess.Popen", "jax.jit", "jax.pure_callback", "jax.numpy.load",
    "jax.experimental.io_callback", "jax.debug.callback", "flax.linen.jit", "equinox.tree_deserialise_leaves",
    "flax.training.checkpoints.restore_checkpoint", "safepoint.load_model", "antigravity.x",
    "tests.jax_models.test_hostile.os", "tests.jax_models.test_hostile.File",
    "tests.jax_models.test_hostile.re.compile",
    "", ".", "a" * 5000, None, 3, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_nobody_allowed_is_refused_wherever_it_stands(name: Any, file: File) -> None:
    imported = set(sys.modules)
    for value in ({"name": name}, {"object": [name, []]}, {"module": [name, []]}, {"partial": [name, [], []]}):
        forms = {
            "function": {"function": value, "params": {"dict": []}},
            "equinox": {"model": value},
            "linen": {"model": value, "variables": {"dict": []}},
            "nnx": {"class": value, "arguments": [], "positional": [], "set": []},
        }
        for style, form in forms.items():
            new = {"graph": None, "style": style, "class": form}
            with pytest.raises((UntrustedError, CorruptionError)):
                file.load(structure=lambda s, new=new: s.update(new), trust=("tests",))
    assert "antigravity" not in set(sys.modules) - imported


FORMS: list[Any] = [
    None, 1, [], {}, {"model": {"leaf": "nothing"}}, {"model": {"leaf": 3}}, {"model": {"leaf": TEXT}},
    {"model": {"module": ["equinox.nn.Linear", []]}}, {"model": {"module": ["equinox.nn.Linear", [["weight", 1]]]}},
    {"model": {"module": ["equinox.nn.Linear", [["__class__", 1]]]}}, {"model": {"module": []}},
    {"model": {"module": ["equinox.nn.MLP", [["activation", {"default": "width_size"}]]]}},
    {"model": {"scalar": "load"}}, {"model": {"dtype": "load"}}, {"model": {"rngs": [1, 2]}},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_form_of_a_class_that_is_none_is_refused(form: Any, file: File) -> None:
    with pytest.raises(SafepointError):
        file.load(structure=lambda s: s.update(graph=None, style="equinox", **{"class": form}))


def test_a_newer_structure_says_so(file: File) -> None:
    with pytest.raises(UnsupportedError, match="newer safepoint"):
        file.load(structure=lambda s: s.update(version=2))
    with pytest.raises(UnsupportedError, match="newer safepoint"):
        file.load(graph=lambda g: g.update(version=2))
    with pytest.raises(CorruptionError, match="no JAX model"):
        file.load(structure=lambda s: s.update(kind="torch"))
