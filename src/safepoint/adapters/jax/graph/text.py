"""The text of a StableHLO module, looked at before MLIR reads it.

MLIR's reader of bytecode believes the lengths and kinds that stand in a file, and ends the process where they lie; its
reader of text does not, but calls itself for each bracket. So graphs are kept as text, in MLIR's generic form and
without locations, and this module lets only text through that is flat, has no words beyond those of StableHLO, and no
type larger than any memory.
"""

from __future__ import annotations

import re

from safepoint.errors import CorruptionError

MAX_BYTES = 1 << 28
MAX_DEPTH = 64
MAX_ELEMENTS = 1 << 40

_TOKEN = re.compile(
    r"""
    (?P<space>[ \n]+)
  | (?P<string>"(?:[^"\\\n]|\\[\\"nt]|\\[0-9A-F]{2})*")
  | (?P<attribute>\#stablehlo(?:\.[a-z_]{1,64})?\b)
  | (?P<value>[%^][A-Za-z0-9_]{1,64}(?:\#[0-9]{1,8})?|@[A-Za-z0-9_.$]{1,256})
  | (?P<shape>(?<=tensor<)(?:(?:[0-9]{1,15}|\?)x){1,64}(?=[a-z]))
  | (?P<hex>0x[0-9A-Fa-f]{1,32}\b)
  | (?P<number>-?[0-9]{1,40}(?:\.[0-9]{1,400}(?:[eE][+-]?[0-9]{1,4})?)?(?![0-9]))
  | (?P<word>[A-Za-z_][A-Za-z0-9_.$]{0,255})
  | (?P<arrow>->)
  | (?P<open>[(\[{<])
  | (?P<close>[)\]}>])
  | (?P<other>[:=,x?-])
    """,
    re.VERBOSE,
)
_PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}
# Words that lead out of a module: files and lines, blobs beside it, types of other dialects.
_FORBIDDEN = frozenset({"loc", "dense_resource", "opaque", "sparse", "affine_map", "affine_set", "memref", "vector"})


def check(data: bytes, where: str) -> str:
    """The text, if it is one that MLIR may read.

    Raises:
        CorruptionError: it is not; the message says where.
    """
    if len(data) > MAX_BYTES:
        raise CorruptionError(f"the graph in {where} is too large", file=where, expected=f"at most {MAX_BYTES:,} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise _damaged(where, error.start, "a byte that is no letter") from error
    position, opened = 0, []
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise _damaged(where, position, repr(text[position : position + 20]))
        kind, content = token.lastgroup, token.group()
        if kind == "open":
            opened.append(content)
            if len(opened) > MAX_DEPTH:
                raise _damaged(where, position, f"brackets nested deeper than {MAX_DEPTH}")
        elif kind == "close":
            if not opened or opened.pop() != _PAIRS[content]:
                raise _damaged(where, position, "a bracket that closes none")
        elif kind == "shape":
            _check_shape(content, where, position)
        elif kind == "word" and content in _FORBIDDEN:
            raise _damaged(where, position, content)
        position = token.end()
    if opened:
        raise _damaged(where, position, "its end, within brackets")
    return text


def _check_shape(content: str, where: str, position: int) -> None:
    elements = 1
    for size in content[:-1].split("x"):
        elements *= 1 if size == "?" else max(int(size), 1)
    if elements > MAX_ELEMENTS:
        raise _damaged(where, position, f"a tensor of {elements:,} elements")


def _damaged(where: str, position: int, what: str) -> CorruptionError:
    return CorruptionError(
        f"the graph in {where} is no StableHLO that safepoint writes",
        file=where,
        expected="a module in MLIR's generic form",
        found=f"{what}, at byte {position:,}",
    )
