"""What objects look like in a notebook: a title and a table, static, with every word of a stranger's escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_CHARACTERS = 300


def notebook_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, more: int = 0) -> str:
    """HTML without scripts, styles or links: text as text, whatever it says.

    Args:
        title: above the table.
        columns: their titles.
        rows: of cells; `str` of each is shown, cut where it is long.
        more: how many rows are left out.
    """
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    rest = f"<div>{more:,} more</div>" if more else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    return f"<div><b>{_text(title)}</b>{table}{rest}</div>"


def _text(content: object) -> str:
    text = str(content)
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 3]}..."
    return _escaped("".join(c if c.isprintable() else _REPLACEMENT for c in text))


def _escaped(text: str) -> str:
    """As `html.escape`, whose module takes longer to import than `safepoint` itself."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(character, entity)
    return text
