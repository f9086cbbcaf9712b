"""Pictures as files: PNG, SVG, PDF, or one page of HTML that needs no other file, no script and no network.

Invariant: the same numbers make the same bytes; a file appears whole or not at all.
"""

from __future__ import annotations

import html
import io
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safepoint.cli.text import plain
from safepoint.errors import ExistsError, StoreError, UnsupportedError

SUFFIXES = (".png", ".svg", ".pdf", ".html")

_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "figure.dpi": 200,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # looks the same where the font is not
    "svg.hashsalt": "safepoint",  # ids that are the same each time
    "text.parse_math": False,  # a name with dollars is no formula
}
_NO_DATE = {
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".pdf": {"CreationDate": None},
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #1c1e21 }}
figure {{ margin: 0 0 2.5em }}
figcaption {{ color: #5a6069 }}
svg {{ width: 100%; height: auto }}
</style>
</head>
<body>
<h1>{title}</h1>
{figures}
</body>
</html>
"""


def check_library() -> None:
    """Whether there is something to draw with.

    Raises:
        UnsupportedError: there is not; says what to install.
    """
    try:
        import matplotlib as _  # noqa: F401, ICN001
    except ImportError as error:
        raise UnsupportedError(
            "pictures are drawn by matplotlib, which is not installed", hint="pip install 'safepoint[plot]'"
        ) from error


def check_path(path: Path, *, force: bool) -> None:
    """Whether a picture may be written there.

    Raises:
        UnsupportedError: its name does not end as one of `SUFFIXES`.
        ExistsError: something is there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UnsupportedError(
            f"{path} does not say what to draw", expected=f"a name that ends in {', '.join(SUFFIXES)}"
        )
    if path.exists() and not force:
        raise ExistsError(f"{path} is there already", hint="--force replaces it")


def write_pictures(path: Path, title: str, pictures: Sequence[Any]) -> int:
    """Draw numbers into a file; several of them only into a page. Returns its bytes.

    Raises:
        StoreError: it cannot be written.
    """
    from matplotlib import rc_context

    from safepoint.cli.pictures.draw import caption, draw

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        if path.suffix.lower() == ".html":
            figures = "\n".join(
                f"<figure>\n{_inline(draw(numbers))}\n<figcaption>{html.escape(caption(numbers))}</figcaption>\n</figure>"
                for numbers in pictures
            )
            data = _PAGE.format(title=html.escape(plain(title)), figures=figures).encode()
        else:
            (numbers,) = pictures
            data = _drawn(draw(numbers), path.suffix.lower())
    _replace(path, data)
    return len(data)


def _drawn(figure: Any, suffix: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=suffix[1:], metadata=_NO_DATE[suffix])
    return file.getvalue()


def _inline(figure: Any) -> str:
    """The picture without what stands before `<svg`: a declaration and a document type that names a server."""
    text = _drawn(figure, ".svg").decode()
    return text[text.index("<svg") :]


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # noqa: PTH105 — says what it does
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}", error=error, path=str(path), hint="choose another place") from error
