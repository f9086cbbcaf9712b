"""Pictures as matplotlib draws them: every kind, every file, hostile names, nothing drawn twice as something else."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from tests.cli.conftest import Result, run, safepoint

from safepoint.cli.pictures.draw import draw
from safepoint.cli.pictures.numbers import Changes, Metric, Metrics, Sizes, Updates, Weights
from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor

__all__ = ["run", "safepoint"]  # fixtures

HOSTILE = "<script>alert(1)</script>$\\frac{x$ \x1b[31m\u202e&\"'"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Six snapshots of two layers, one of which never moves; names that nobody should believe."""
    monkeypatch.chdir(tmp_path)
    repository = Repository("runs/trained")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(30, 20)).astype(np.float32)
    for step in range(6):
        weight = weight * 1.01
        leaves = {
            "model/a.weight": Tensor.of(weight.astype(np.float32)),
            "model/b.weight": Tensor.of(np.ones((4, 4), np.float32)),
            f"model/{HOSTILE.translate({ord(c): None for c in '/' + chr(27) + chr(0x202E)})}": Tensor.of(
                np.full((8, 8), step, np.float32)
            ),
            "optimizer/model/a.weight/exp_avg": Tensor.of(weight.astype(np.float32)),
        }
        repository.commit(StateTree(leaves, Branch("dict")), step=step, metrics={HOSTILE: 1 / (step + 1), "acc": step})
    repository.tag(2, "release-1")
    return repository


@pytest.mark.parametrize(
    "kind, suffix", [("metrics", ".png"), ("weights", ".svg"), ("updates", ".pdf"), ("sizes", ".svg")]
)
def test_every_kind_in_every_file(trained: Repository, safepoint: Callable[..., Result], kind, suffix) -> None:
    result = safepoint("plot", "runs/trained", "--kind", kind, "-o", f"out{suffix}")
    assert result.code == 0, result.err
    assert result.out == ""
    assert result.err.startswith(f"out{suffix}: {kind}, ")
    assert {"metrics": "star: the best", "weights": "median", "updates": "Relative update", "sizes": "bytes"}[kind] in (
        " ".join(result.err.split())
    )
    data = Path(f"out{suffix}").read_bytes()
    match suffix:
        case ".png":
            width, height = struct.unpack(">II", data[16:24])
            assert width == 1400
            assert height > 300
        case ".svg":
            assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
        case ".pdf":
            assert data.startswith(b"%PDF-")


def test_what_changed_between_two(trained: Repository, safepoint: Callable[..., Result]) -> None:
    assert safepoint("plot", "runs/trained@0", "runs/trained@5", "-o", "out.svg").code == 0
    assert ET.parse("out.svg").getroot().tag.endswith("svg")


def test_a_page_is_static_and_has_no_address_to_load_from(trained: Repository, safepoint) -> None:
    assert safepoint("plot", "runs/trained", "-o", "out.html").code == 0
    text = Path("out.html").read_text(encoding="utf-8")

    seen: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs) -> None:
            seen.append((tag, dict(attrs)))

    Tags().feed(text)
    names = [tag for tag, _ in seen]
    assert names.count("svg") == 4
    assert "script" not in names
    for tag, attributes in seen:
        assert "src" not in attributes
        assert not [a for a in attributes if a.startswith("on")]
        for attribute in ("href", "xlink:href"):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:image/png;base64,")), tag
    assert "img-src data:" in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert "\x1b" not in text
    assert "default-src 'none'" in text


def test_the_same_numbers_make_the_same_bytes(trained: Repository, safepoint: Callable[..., Result]) -> None:
    for name in ("a.svg", "b.svg", "a.pdf", "b.pdf"):
        assert safepoint("plot", "runs/trained", "--kind", "sizes", "-o", name).code == 0
    for suffix in (".svg", ".pdf"):
        assert Path(f"a{suffix}").read_bytes() == Path(f"b{suffix}").read_bytes()


def test_a_file_that_is_there_stays_unless_told(trained: Repository, safepoint: Callable[..., Result]) -> None:
    Path("out.png").write_text("mine")
    result = safepoint("plot", "runs/trained", "-o", "out.png")
    assert result.code == 6
    assert "--force" in result.err
    assert Path("out.png").read_text() == "mine"
    assert safepoint("plot", "runs/trained", "-o", "out.png", "--force").code == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path().iterdir()) == ["out.png", "runs"]


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(trained: Repository, safepoint) -> None:
    result = safepoint("plot", "runs/trained", "-o", "nowhere/out.png")
    assert result.code == 12
    assert "cannot write nowhere/out.png" in result.err


def test_json_and_a_picture_at_once(trained: Repository, safepoint: Callable[..., Result]) -> None:
    result = safepoint("plot", "runs/trained", "-o", "out.png", "--json")
    assert result.err == ""
    assert result.json["file"] == "out.png"
    assert list(result.json["pictures"]) == ["metrics"]
    assert Path("out.png").exists()
    assert safepoint("plot", "runs/trained", "-o", "two.png", "-q").out == "two.png\n"


NOTHING = [
    Metrics([Metric("loss", "min", [1], [None], [True], None)], {}, ["more"]),
    Metrics([Metric("loss", "min", [1, 2], [1.0, None], [False, True], 0)], {"tag": 2}, []),
    Weights([1], [0.5], {"a": [[None, None, None]]}, ["a"], 3, 2),
    Updates([0, 1], {"a": [None], "b": [0.0]}, 1),
    Updates([0, 1], {}, 0),
    Sizes({}, 0),
    Sizes({"a": 0, "b": 0}, 0),
    Sizes({"a": 10**15, "b": 1}, 0),
    Changes({}, 0, 3, [], [], []),
    Changes({"a": None, "b": 1e-12, "c": 1e9}, 1, 0, ["x"], ["y"], ["z"]),
]


@pytest.mark.parametrize("numbers", NOTHING, ids=[f"{type(n).__name__}-{i}" for i, n in enumerate(NOTHING)])
def test_the_ends_of_what_can_be_drawn(numbers, tmp_path: Path) -> None:
    from safepoint.cli.pictures.files import write_pictures

    assert draw(numbers).axes
    assert write_pictures(tmp_path / "out.html", HOSTILE, [numbers]) > 1000


def test_dots_of_the_metric_are_at_its_values_and_the_star_at_the_best() -> None:
    figure = draw(Metrics([Metric("loss", "min", [1, 2, 3], [3.0, 1.0, 2.0], [False, True, True], 1)], {}, []))
    line, pruned, kept, star = figure.axes[0].get_lines()
    assert line.get_xydata().tolist() == [[1, 3], [2, 1], [3, 2]]
    assert pruned.get_xydata().tolist() == [[1, 3]]
    assert kept.get_xydata().tolist() == [[2, 1], [3, 2]]
    assert star.get_xydata().tolist() == [[2, 1]]


def test_the_heat_map_has_a_row_a_layer_and_a_column_a_step() -> None:
    figure = draw(Updates([0, 10, 20], {"a": [0.1, 0.01], "b": [None, 0.0]}, 0))
    still, moved = figure.axes[0].collections
    np.testing.assert_allclose(np.ma.filled(moved.get_array(), np.nan), [[0.1, 0.01], [np.nan, np.nan]])
    np.testing.assert_allclose(np.ma.filled(still.get_array(), np.nan), [[np.nan, np.nan], [np.nan, 1]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_panel_says_that_its_quantiles_are_those_of_a_sample() -> None:
    figure = draw(Weights([1], [0.5], {"a": [[0.0, 1.0, 2.0]], "b": [[0.0, 1.0, 2.0]]}, ["b"], 0, 0))
    assert [axis.get_title(loc="right") for axis in figure.axes] == ["", "of a sample"]
