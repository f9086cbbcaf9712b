"""Each kind of picture, drawn from its numbers: print width, no chart junk, what is not shown said below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

from safepoint.cli.pictures.numbers import Changes, Metrics, Numbers, Sizes, Updates, Weights
from safepoint.cli.pictures.treemap import squarify
from safepoint.cli.text import count, metric, plain, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0
"""Inches: two columns of a paper."""

_PALETTE = (
    "#2f6fb0", "#d9822b", "#5b9a68", "#a65a8c", "#8a8f98", "#c4a23a", "#4aa3a3", "#7a6bb0", "#b35450", "#6b7a3a"
)  # fmt: skip
_BLUE, _ORANGE, _GREY = _PALETTE[0], _PALETTE[1], _PALETTE[4]
_TINY_TILE = 0.0012  # of the area: too small for a name
_LONGEST_NAME = 34
_A_THOUSANDTH = 1e-3


def draw(numbers: Numbers) -> Figure:
    """The picture of some numbers."""
    match numbers:
        case Metrics():
            return _metrics(numbers)
        case Weights():
            return _weights(numbers)
        case Updates():
            return _updates(numbers)
        case Sizes():
            return _sizes(numbers)
        case Changes():
            return _changes(numbers)
        case _:
            assert_never(numbers)


def caption(numbers: Numbers) -> str:
    """What the picture shows, and what it leaves out, in words."""
    match numbers:
        case Metrics():
            left = f" Not drawn: {', '.join(map(plain, numbers.left_out))}." if numbers.left_out else ""
            return (
                "Metrics over the steps of the run. Filled dots: snapshots that are kept; open dots: pruned ones; "
                f"star: the best that is kept.{left}"
            )
        case Weights():
            sample = (
                ""
                if not numbers.sampled
                else " Quantiles of tensors above 65,536 elements are those of a fixed sample, every 251st element."
            )
            left = f" {count(numbers.left_out, 'smaller tensor')} not drawn." if numbers.left_out else ""
            return (
                "Weights over the steps of the run: median, and the bands of 25 to 75, 5 to 95 and 1 to 99 % of the "
                f"elements; dotted: the smallest and the largest.{sample}{left}{_passed_over(numbers.passed_over)}"
            )
        case Updates():
            return (
                "Relative update: norm of the difference from the snapshot before by the norm before. "
                "Grey: nothing to compare with; white: nothing moved; line in the scale: 1e-3, usual for a single step."
                f"{_passed_over(numbers.passed_over)}"
            )
        case Sizes():
            return "Size by layer: areas are bytes."
        case Changes():
            parts = [
                count(numbers.equal, "tensor") + " equal",
                f"{numbers.left_out} moved less" if numbers.left_out else "",
                f"{len(numbers.added)} added" if numbers.added else "",
                f"{len(numbers.removed)} removed" if numbers.removed else "",
                f"{len(numbers.reshaped)} of another shape" if numbers.reshaped else "",
            ]
            return (
                "Relative change: norm of the difference by the norm before, in the order of the model. Not drawn: "
                + ", ".join(part for part in parts if part)
                + "."
            )
        case _:
            assert_never(numbers)


def _passed_over(snapshots: int) -> str:
    return f" {count(snapshots, 'snapshot')} between them not looked at." if snapshots else ""


def _figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _metrics(numbers: Metrics) -> Figure:
    figure, axes = _figure(len(numbers.metrics), 1, 0.6 + 1.6 * len(numbers.metrics), sharex=True)
    for axis, one in zip(axes[:, 0], numbers.metrics, strict=True):
        values = [float("nan") if value is None else value for value in one.values]
        axis.plot(one.steps, values, color=_BLUE, linewidth=1.2, zorder=2)
        for kept, face in ((False, "white"), (True, _BLUE)):
            places = [i for i, k in enumerate(one.kept) if k == kept]
            axis.plot(
                [one.steps[i] for i in places], [values[i] for i in places],
                "o", markersize=3.5, markerfacecolor=face, markeredgecolor=_BLUE, markeredgewidth=0.8, zorder=3,
            )  # fmt: skip
        if one.best is not None:
            step, value = one.steps[one.best], values[one.best]
            axis.plot([step], [value], "*", markersize=11, color=_ORANGE, markeredgecolor="white", zorder=4)
            axis.set_title(f"best {metric(value)} at step {step}", loc="right", color=_ORANGE, fontsize=8)
        for step in numbers.tags.values():
            axis.axvline(step, color=_GREY, linewidth=0.8, linestyle=":", zorder=1)
        finite = [value for value in one.values if value is not None]
        if finite and min(finite) > 0 and max(finite) > 50 * min(finite):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(_plain_number)
            axis.yaxis.set_minor_formatter("")
        axis.set_ylabel(_short(one.name))
        axis.margins(x=0.03, y=0.18)
    for tag, step in numbers.tags.items():
        axes[0, 0].annotate(
            _short(tag), (step, 1.0), xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(2, -1),
            ha="left", va="top", fontsize=7, color=_GREY, rotation=90,
        )  # fmt: skip
    axes[-1, 0].set_xlabel("step")
    return figure


def _weights(numbers: Weights) -> Figure:
    columns = {1: 1, 2: 2, 4: 2}.get(len(numbers.tensors), 3)
    rows = -(-len(numbers.tensors) // columns)
    figure, axes = _figure(rows, columns, 0.5 + 1.75 * rows, sharex=True)
    middle = numbers.quantiles.index(0.5) + 1  # after the minimum
    for axis, (name, quantiles) in zip(axes.flat, numbers.tensors.items(), strict=False):
        lines = [[float("nan") if value is None else value for value in line] for line in zip(*quantiles, strict=True)]
        for inner in range(1, middle):
            axis.fill_between(
                numbers.steps, lines[inner], lines[-1 - inner], color=_BLUE, alpha=0.16 + 0.1 * inner, linewidth=0
            )
        for line in (lines[0], lines[-1]):
            axis.plot(numbers.steps, line, color=_GREY, linewidth=0.7, linestyle=":")
        axis.plot(numbers.steps, lines[middle], color="#12385f", linewidth=1.2)
        axis.set_title(_short(name), fontsize=8, loc="left")
        if name in numbers.sampled:
            axis.set_title("of a sample", fontsize=7, loc="right", color=_GREY)
        axis.margins(x=0)
    for axis in axes.flat[len(numbers.tensors) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(numbers.tensors) - columns) : len(numbers.tensors)]:  # the last of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("step")
    return figure


def _updates(numbers: Updates) -> Figure:
    import numpy as np
    from matplotlib.colors import LogNorm

    figure, axes = _figure(1, 1, 1.3 + 0.2 * max(4, len(numbers.layers)))
    axis = axes[0, 0]
    cells = [np.nan if value is None else value for row in numbers.layers.values() for value in row]
    table = np.array(cells, float).reshape(len(numbers.layers), len(numbers.steps) - 1)
    moved = table[np.isfinite(table) & (table > 0)]
    low, high = (float(moved.min()), float(moved.max())) if moved.size else (1e-4, 1e-2)
    norm = LogNorm(min(low, _A_THOUSANDTH / 2), max(high, _A_THOUSANDTH * 2))
    axis.set_facecolor("#d8dade")
    edges = np.arange(table.shape[1] + 1) - 0.5
    axis.pcolormesh(
        edges, np.arange(len(table) + 1) - 0.5, np.where(table == 0, 1.0, np.nan), cmap="binary_r", vmin=0, vmax=1
    )
    mesh = axis.pcolormesh(
        edges, np.arange(len(table) + 1) - 0.5, np.where(table > 0, table, np.nan), norm=norm, cmap="viridis"
    )
    axis.set_yticks(range(len(table)), [_short(layer) for layer in numbers.layers], fontsize=7)
    axis.invert_yaxis()
    steps = numbers.steps[1:]
    ticks = sorted({round(place) for place in np.linspace(0, len(steps) - 1, min(8, len(steps)))})
    axis.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axis.set_xlabel("step")
    bar = figure.colorbar(mesh, ax=axis, pad=0.02)
    bar.set_label("relative update")
    bar.ax.axhline(_A_THOUSANDTH, color="white", linewidth=1.5)
    bar.ax.yaxis.set_major_formatter(_plain_number)
    return figure


def _sizes(numbers: Sizes) -> Figure:
    figure, axes = _figure(1, 1, 4.2)
    axis = axes[0, 0]
    total = sum(numbers.layers.values()) or 1
    groups = list(dict.fromkeys(_group(layer) for layer in numbers.layers))
    colours = _colours(groups)
    shares = {layer: num_bytes / total for layer, num_bytes in numbers.layers.items() if num_bytes}
    for (layer, share), (x, y, width, height) in zip(
        shares.items(), squarify(list(shares.values()), WIDTH, 4.0), strict=True
    ):
        colour = colours[_group(layer)]
        axis.add_patch(_rectangle(x, y, width, height, colour))
        if share > _TINY_TILE:
            _label(axis, layer, numbers.layers[layer], share, (x, y, width, height))
    axis.set_xlim(0, WIDTH)
    axis.set_ylim(4.0, 0)
    axis.set_axis_off()
    handles = [_rectangle(0, 0, 1, 1, colours[group]) for group in groups]
    if 1 < len(groups) <= 8:
        figure.legend(
            handles, [_short(group) for group in groups], loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return figure


def _changes(numbers: Changes) -> Figure:
    names, values = list(numbers.tensors), list(numbers.tensors.values())
    figure, axes = _figure(1, 1, 0.9 + 0.19 * max(3, len(names)))
    axis = axes[0, 0]
    finite = [value for value in values if value]
    wide = max(finite, default=1) > 20 * min(finite, default=1)
    left = min(finite, default=1) / 2 if wide else 0.0
    for place, value in enumerate(values):
        if value is None:  # from zero
            axis.annotate("from zero", (left, place), fontsize=7, va="center", color=_ORANGE)
            continue
        axis.plot([left, value], [place, place], color=_BLUE, linewidth=1, alpha=0.5)
        axis.plot([value], [place], "o", color=_BLUE, markersize=4)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(_plain_number)
        axis.xaxis.set_minor_formatter("")
    axis.set_xlim(left=left)
    axis.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=7)
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axis.set_xlabel("relative change")
    axis.grid(axis="x", color="#e3e5e8", linewidth=0.6)
    if not names:
        axis.annotate("nothing moved", (0.5, 0.5), xycoords="axes fraction", ha="center", color=_GREY)
    return figure


def _rectangle(x: float, y: float, width: float, height: float, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1)


def _label(axis: Axes, layer: str, num_bytes: int, share: float, box: tuple[float, float, float, float]) -> None:
    """Name, bytes and share, as much of them as the tile has room for."""
    x, y, width, height = box
    letters = int(width / 0.075)  # inches, at 7 points
    lines = [_short(layer, letters), f"{size(num_bytes)} · {100 * share:.1f} %"]
    shown = [line for line in lines if len(line) <= letters][: int(height / 0.13)]
    if shown and letters >= 4:
        axis.text(x + 0.04, y + 0.04, "\n".join(shown), fontsize=7, va="top", ha="left", color="white")


def _plain_number(value: float, _place: int | None = None) -> str:
    """Powers of ten without markup, which is off: names have dollars too."""
    return f"{value:g}"


def _group(layer: str) -> str:
    return layer.partition("/")[0] if "/" in layer else layer.partition(".")[0]


def _colours(groups: Sequence[str]) -> Mapping[str, str]:
    return {group: _PALETTE[index % len(_PALETTE)] for index, group in enumerate(groups)}


def _short(name: str, letters: int = _LONGEST_NAME) -> str:
    """The end of a name tells more than its beginning."""
    text = plain(name)
    return text if len(text) <= letters else f"…{text[len(text) - letters + 1 :]}"
