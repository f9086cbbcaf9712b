"""Squarified treemaps. Source: Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000."""

from __future__ import annotations

from collections.abc import Sequence


def squarify(shares: Sequence[float], width: float, height: float) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of a tile for each share, in their order; positive, the largest first.

    The tiles fill a rectangle of `width` by `height` without overlap, and none is longer than it must be.
    """
    whole = sum(shares)
    areas = [share / whole * width * height for share in shares]
    tiles: list[tuple[float, float, float, float]] = []
    x = y = 0.0
    place = 0
    while place < len(areas):
        side = min(width, height)
        row = [areas[place]]
        while place + len(row) < len(areas) and _worst([*row, areas[place + len(row)]], side) <= _worst(row, side):
            row.append(areas[place + len(row)])
        depth = sum(row) / side if side else 0.0
        along = 0.0
        for area in row:
            length = area / depth if depth else 0.0
            tiles.append((x, y + along, depth, length) if width >= height else (x + along, y, length, depth))
            along += length
        if width >= height:
            x, width = x + depth, max(0.0, width - depth)
        else:
            y, height = y + depth, max(0.0, height - depth)
        place += len(row)
    return tiles


def _worst(row: Sequence[float], side: float) -> float:
    """How far the longest tile of a row is from a square."""
    total = sum(row)
    if not side or not total:
        return float("inf")
    return max(side * side * max(row) / (total * total), total * total / (side * side * min(row)))
