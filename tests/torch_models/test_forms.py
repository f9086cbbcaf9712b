"""What a loaded graph is, what it takes, and which of several structures over one set of weights is built."""

from __future__ import annotations

import copy
import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.torch_models.models import assert_same_state
from torch import nn

import safepoint
from safepoint.cli.structure import summary_of
from safepoint.errors import MismatchError, UnsupportedError, UntrustedError
from safepoint.repository import read_model_file


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 2)
        self.register_buffer("scale", torch.linspace(0.5, 1, 2), persistent=False)
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Any, shift: Any = None, *, gain: float = 1.0) -> Any:
        x = torch.relu(self.norm(self.conv(x))).mean(-1)
        x = self.head(self.drop(x)) * self.scale * gain
        return x if shift is None else x + shift


X = torch.linspace(-1, 1, 2 * 3 * 8).reshape(2, 3, 8)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(16, 3, 8))  # statistics that are not those of a new layer
    return model


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in training mode, saved with its class and its graph."""
    place = tmp_path_factory.mktemp("forms") / "net.safetensors"
    safepoint.save_model(model, place, example_inputs=(X,), init={"width": 4})
    assert model.training
    return place


@pytest.fixture
def graph(file: Path) -> Any:
    return safepoint.load_model(file)


def test_the_class_goes_first_where_it_is_allowed_and_trains_on_as_before(model: Any, file: Path) -> None:
    again = safepoint.load_model(file, custom_objects={"Net": Net})
    assert type(again) is Net
    assert_same_state(model, again)
    assert again.training
    ours = copy.deepcopy(model)
    for each in (ours, again):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(X).square().mean().backward()
        optimizer.step()
    assert_same_state(ours, again)


def test_form_chooses_and_says_what_is_not_there(file: Path, tmp_path: Path) -> None:
    assert type(safepoint.load_model(file, form="graph", custom_objects={"Net": Net})).__name__ == "GraphModel"
    with pytest.raises(UntrustedError, match="custom_objects="):
        safepoint.load_model(file, form="class")
    safepoint.save_model(nn.Linear(2, 2), tmp_path / "class alone")
    with pytest.raises(UnsupportedError, match="example_inputs="):
        safepoint.load_model(tmp_path / "class alone", form="graph")
    with pytest.raises(UnsupportedError, match="'auto', 'class', 'graph'"):
        safepoint.load_model(file, form="pickle")


def test_which_form_was_built_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "safepoint"):
        safepoint.load_model(file)
    assert "built from its exported graph" in caplog.text


def test_several_structures_have_one_set_of_weights(model: Any, file: Path) -> None:
    found = load_file(file)
    assert [name for name in found if not name.startswith("__safepoint__/")] != []
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor)
    # Beside them only what `state_dict` leaves out.
    assert len(found) == len(model.state_dict()) + 1


def test_a_graph_has_the_names_parameters_and_flags_of_the_model(model: Any, graph: Any) -> None:
    for what in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, what)()), dict(getattr(graph, what)())
        assert list(ours) == list(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert all(tensor.requires_grad == theirs[name].requires_grad for name, tensor in ours.items())
    assert list(graph.state_dict()) == list(model.state_dict())
    graph.load_state_dict(model.state_dict())
    safepoint.Checkpoint(model=graph)


def test_a_graph_is_for_inference(graph: Any) -> None:
    assert graph.eval() is graph
    assert not graph.training
    with pytest.raises(UnsupportedError, match=r'form="class"'):
        graph.train()


def test_other_sizes_dtypes_and_devices(model: Any, file: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16, "float16"):
        graph = safepoint.load_model(file, dtype=dtype)
        kind = graph.conv.weight.dtype
        assert kind == (torch.float16 if dtype == "float16" else dtype)
        assert graph.norm.num_batches_tracked.dtype == torch.int64
        wanted = copy.deepcopy(model).eval().to(kind)
        for size in (1, 2, 7):
            x = torch.linspace(-1, 1, size * 3 * 11).reshape(size, 3, 11).to(kind)
            assert torch.equal(graph(x), wanted(x))
    moved = safepoint.load_model(file, device="meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert moved(X.to("meta")).device.type == "meta"
    assert torch.equal(safepoint.load_model(file).to(torch.float64)(X.double()), model.eval().double()(X.double()))
    model.float().train()


def test_a_dtype_is_for_floating_point_weights_only(tmp_path: Path) -> None:
    model = nn.ParameterDict(
        {
            "phases": nn.Parameter(torch.randn(3, dtype=torch.complex64)),
            "small": nn.Parameter(torch.randn(3).to(torch.float8_e4m3fn)),
            "short": nn.Parameter(torch.randn(3).bfloat16()),
            "steps": nn.Parameter(torch.arange(3), requires_grad=False),
        }
    )
    safepoint.save_model(model, tmp_path / "model")
    assert_same_state(model, safepoint.load_model(tmp_path / "model"))
    again = safepoint.load_model(tmp_path / "model", dtype="float32")
    kinds = {name: tensor.dtype for name, tensor in again.named_parameters()}
    assert kinds["phases"] == torch.complex64
    assert torch.equal(again["phases"], model["phases"])
    assert kinds["small"] == kinds["short"] == torch.float32
    assert kinds["steps"] == torch.int64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "no floating-point dtype"),
        ({"dtype": "float31"}, "no floating-point dtype"),
        ({"dtype": 3}, "no floating-point dtype"),
        ({"device": "nowhere"}, "cannot be put on"),
        ({"device": "cuda:99"}, "cannot be put on"),
    ],
)
def test_a_dtype_or_device_that_is_none_is_refused(options: Any, words: str, file: Path) -> None:
    for form in ("graph", "class"):
        with pytest.raises(UnsupportedError, match=words):
            safepoint.load_model(file, form=form, custom_objects={"Net": Net}, **options)


def test_copies_of_a_graph_are_their_own(graph: Any) -> None:
    before = graph(X)
    other = copy.deepcopy(graph)
    with torch.no_grad():
        other.head.weight.zero_()
    assert torch.equal(graph(X), before)
    assert not torch.equal(other(X), before)


def test_gradients_flow_through_a_graph(model: Any, graph: Any) -> None:
    x = X.clone().requires_grad_()
    graph(x).sum().backward()
    ours = copy.deepcopy(model).eval()
    y = X.clone().requires_grad_()
    ours(y).sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(graph.head.weight.grad, ours.head.weight.grad)


def test_a_loaded_graph_is_saved_by_copying_its_file(graph: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="copy"):
        safepoint.save_model(graph, tmp_path / "again", example_inputs=(X,))


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "nothing": ((), {}, "other arguments"),
    "too much": ((X, X, X), {}, "other arguments"),
    "an unknown name": ((X,), {"y": X}, "other arguments"),
    "an argument twice": ((X,), {"x": X}, "other arguments"),
    "a number": ((3,), {}, "x is a int"),
    "another dtype": ((X.double(),), {}, r"x is torch\.float64"),
    "other axes": ((X[0],), {}, "x has the shape"),
    "other channels": ((X[:, :2],), {}, "3 along axis 1"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_the_graph_was_not_traced_for_is_refused(what: str, graph: Any) -> None:
    args, kwargs, words = CALLS[what]
    with pytest.raises(MismatchError, match=words):
        graph(*args, **kwargs)


Pair = namedtuple("Pair", "first second")  # noqa: PYI024


class Nested(nn.Module):
    """Arguments and results in containers, by name, with constants and None."""

    def forward(self, batch: Any, *, mask: Any = None, double: bool = False) -> Any:
        x = batch["x"] + batch["more"][0]
        if mask is not None:
            x = x * mask
        if double:
            x = x + x
        return Pair(x, {"sum": x.sum(-1), "parts": [x[:, :1], None]})


def test_nested_arguments_and_results(tmp_path: Path) -> None:
    given = {"x": torch.randn(3, 4), "more": (torch.randn(3, 4), 2)}
    mask = torch.ones(3, 4)
    example = {"batch": given, "mask": mask, "double": True}
    safepoint.save_model(Nested(), tmp_path / "model", example_inputs=example)
    graph = safepoint.load_model(tmp_path / "model", form="graph")
    for size in (3, 1, 5):
        batch = {"x": torch.randn(size, 4), "more": (torch.randn(size, 4), 2)}
        mask = torch.rand(size, 4)
        ours, theirs = Nested()(batch, mask=mask, double=True), graph(batch=batch, mask=mask, double=True)
        assert torch.equal(theirs.first, ours.first)
        assert torch.equal(theirs[1]["sum"], ours.second["sum"])
        assert torch.equal(theirs.second["parts"][0], ours.second["parts"][0])
        assert theirs["second"]["parts"][1] is None
    with pytest.raises(MismatchError, match="double is False"):
        graph(batch=batch, mask=mask, double=False)
    with pytest.raises(MismatchError, match="other keys"):
        graph(batch={"x": batch["x"]}, mask=mask, double=True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_take_sequences_of_any_length(kind: str, tmp_path: Path) -> None:
    options = {"bidirectional": True, "num_layers": 2, "batch_first": kind == "GRU"}
    if kind == "LSTM":
        options["proj_size"] = 3
    model = getattr(nn, kind)(4, 5, dropout=0.5, **options)
    safepoint.save_model(model, tmp_path / "model", example_inputs=(torch.randn(6, 3, 4),))
    graph = safepoint.load_model(tmp_path / "model", form="graph")
    assert len(graph.document.nodes) < 40
    for shape in ((6, 3, 4), (1, 2, 4), (50, 1, 4)):
        x = torch.randn(*shape)
        torch.testing.assert_close(graph(x), model.eval()(x), rtol=0, atol=0)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.linear(x) if x.sum().item() > 0 else x


def test_an_untraceable_model_is_saved_with_a_warning_that_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Branching())
    safepoint.save_model(model, tmp_path / "model", example_inputs=(torch.ones(3, 2),))
    assert "without a graph, so loading it needs the class" in caplog.text
    assert "cannot be traced" in caplog.text
    again = safepoint.load_model(tmp_path / "model", custom_objects={"Branching": Branching})
    assert_same_state(model, again)
    with pytest.raises(UnsupportedError, match="without its graph"):
        safepoint.load_model(tmp_path / "model", form="graph")


class Needy(Branching):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def test_arguments_that_cannot_be_known_are_said_with_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"size\) were not kept") as refused:
        safepoint.save_model(Needy(3), tmp_path / "model")
    for way in ("@safepoint.register", "init=", "example_inputs="):
        assert way in str(refused.value)
    with pytest.raises(UnsupportedError, match=r"size\) were not kept.*by its graph.*cannot be traced"):
        safepoint.save_model(Needy(3), tmp_path / "model", example_inputs=(torch.ones(3, 2),))
    assert not (tmp_path / "model").exists()


def test_an_operator_of_somebodys_is_in_no_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Calling(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.ops.somebodys.act(x)

    with torch.library._scoped_library("somebodys", "DEF") as library:
        library.define("act(Tensor x) -> Tensor")
        library.impl("act", lambda x: x + 1, "CompositeExplicitAutograd")
        safepoint.save_model(Calling(), tmp_path / "model", example_inputs=(X[0],))
    assert "calls somebodys.act.default, which no graph in a file may call" in caplog.text
    with pytest.raises(UnsupportedError, match="without its graph"):
        safepoint.load_model(tmp_path / "model", form="graph")


def test_what_show_says_of_it(file: Path) -> None:
    summary = summary_of(read_model_file(file).structure)
    assert summary["class"].endswith(".Net(width=4)")
    assert summary["graph"].startswith("x float32[any, 3, any] in ")
    assert summary["written by"] == f"PyTorch {torch.__version__}"
