"""Sealed JSON: a small document that carries the digest of its own bytes, so that no flipped bit goes unnoticed.

Layout: `{"digest":"<64 hex>","body":<body>}` and a newline; the digest is BLAKE3 of exactly the body's bytes.
"""

from __future__ import annotations

from safepoint.codec.blocks import DIGEST_LENGTH, digest
from safepoint.errors import CorruptionError

_HEAD = b'{"digest":"'
_MIDDLE = b'","body":'
_TAIL = b"}\n"
_START = len(_HEAD) + DIGEST_LENGTH + len(_MIDDLE)


def seal(body: bytes) -> bytes:
    """The sealed document around a body of JSON."""
    return b"".join((_HEAD, digest(body).encode(), _MIDDLE, body, _TAIL))


def unseal(data: bytes, *, file: str) -> bytes:
    """The body of a sealed document, verified.

    Raises:
        CorruptionError: it is cut short, changed, or never was one.
    """
    body = data[_START : -len(_TAIL)]
    if len(data) <= _START + len(_TAIL) or seal(body) != data:
        raise CorruptionError(
            f"{file} is damaged",
            file=file,
            expected="a document whose digest fits its content",
            found=f"{len(data)} bytes that do not",
        )
    return body
