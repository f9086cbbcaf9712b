"""Pickles read opcode by opcode: they build lists, dictionaries, plain values and records of ours; nothing runs.

Invariant: the standard library's unpickler is never used. A name in a pickle is a key into a table of ours or a
refusal; it is never imported. Source: `pickletools` of CPython, whose opcodes of protocols 2 to 5 these are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, final

from safepoint.errors import CorruptionError, UntrustedError
from safepoint.formats.cursor import Cursor

Build = Callable[[tuple[Any, ...]], Any]
"""Arguments that a pickle gives → what is made of them, by a function of ours."""

_MAX_TEXT_BYTES = 64 << 20
_MAX_INTEGER_BYTES = 1024


class Global(NamedTuple):
    """A name of a class or function; only ever compared."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@final
class Pairs:
    """A dictionary as it was written: pairs in order, so that no key of a stranger's is ever hashed."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def get(self, key: str) -> Any:
        """The value of a text key, or None."""
        return next((value for known, value in self.pairs if isinstance(known, str) and known == key), None)


class Record:
    """What a table makes of a class's name: arguments, and later its state."""

    def __init__(self, name: Global, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None


_MARK = object()
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}
# Opcode → (format of the length before it, what it is).
_LENGTHS = {
    ord("X"): ("<I", "text"), 0x8C: ("<B", "text"), 0x8D: ("<Q", "text"),
    ord("T"): ("<i", "old text"), ord("U"): ("<B", "old text"),
    ord("B"): ("<I", "bytes"), ord("C"): ("<B", "bytes"), 0x8E: ("<Q", "bytes"), 0x96: ("<Q", "bytes"),
    0x8A: ("<B", "integer"), 0x8B: ("<i", "integer"),
}  # fmt: skip
_GETS = {ord("h"): "<B", ord("j"): "<I"}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}
_TUPLES = {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3}
_NOT_READ = {
    ord("0"): "POP", ord("1"): "POP_MARK", ord("2"): "DUP", ord("i"): "INST", ord("o"): "OBJ", ord("I"): "INT",
    ord("L"): "LONG", ord("S"): "STRING", ord("V"): "UNICODE", ord("F"): "FLOAT", ord("P"): "PERSID", ord("p"): "PUT",
    ord("g"): "GET", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x92: "NEWOBJ_EX", 0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}  # fmt: skip


@final
class Unpickler:
    """Reads one pickle.

    Args:
        cursor: where it is.
        names: names that it may call or create, and what we make of the arguments.
        inert: whether a name may stand for itself, uncalled (a dtype, a class of storages).
        persistent: what we make of a persistent id; None: a pickle that has one is refused.
    """

    def __init__(
        self,
        cursor: Cursor,
        names: Mapping[Global, Build],
        *,
        inert: Callable[[Global], bool] = lambda _name: False,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._cursor = cursor
        self._names = names
        self._inert = inert
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: list[Any] = []
        self._sparse: dict[int, Any] = {}
        self._steps = self._table()

    def load(self) -> Any:
        """What the pickle holds.

        Raises:
            UntrustedError: it names something that is not in the tables, or does what no saved tensors need.
            CorruptionError: it is no pickle, or cut short.
        """
        steps, byte = self._steps, self._cursor.byte
        try:
            while (code := byte()) != 0x2E:
                step = steps.get(code)
                if step is None:
                    self._refuse(code)
                else:
                    step()
            (value,) = self._values(self._stack, 1)
        except (IndexError, ValueError, TypeError, struct.error, AttributeError, OverflowError) as error:
            raise self._damaged(error) from error
        return value

    def _table(self) -> dict[int, Callable[[], None]]:
        """Opcode → what it does."""
        push = self._stack.append
        found: dict[int, Callable[[], None]] = {
            ord("("): lambda: push(_MARK),
            ord("]"): lambda: push([]),
            ord("}"): lambda: push(Pairs()),
            0x8F: lambda: push([]),  # a set: plain data, in the order in which it was written
            ord("t"): lambda: push(tuple(self._since_mark())),
            ord("l"): lambda: push(self._since_mark()),
            0x91: lambda: push(self._since_mark()),
            ord("a"): lambda: self._add_values([self._pop()]),
            ord("e"): lambda: self._add_values(self._since_mark()),
            0x90: lambda: self._add_values(self._since_mark()),
            ord("s"): lambda: self._add_items([self._pop(), self._pop()][::-1]),
            ord("u"): lambda: self._add_items(self._since_mark()),
            ord("c"): lambda: self._global(self._cursor.line(), self._cursor.line()),
            0x93: lambda: self._global(*[self._pop(), self._pop()][::-1]),
            ord("R"): self._call,
            0x81: self._call,
            ord("b"): self._build,
            ord("Q"): self._refer,
            0x94: lambda: self._put(len(self._memo)),
            0x80: lambda: self._skip("<B"),
            0x95: lambda: self._skip("<Q"),
        }
        found |= {code: partial(push, value) for code, value in _CONSTANTS.items()}
        found |= {code: partial(self._push_number, struct.Struct(layout)) for code, layout in _NUMBERS.items()}
        found |= {code: partial(self._push_sized, struct.Struct(n), kind) for code, (n, kind) in _LENGTHS.items()}
        found |= {code: partial(self._push_known, struct.Struct(layout)) for code, layout in _GETS.items()}
        found |= {code: partial(self._keep, struct.Struct(layout)) for code, layout in _PUTS.items()}
        found |= {code: partial(self._push_tuple, count) for code, count in _TUPLES.items()}
        return found

    def _refuse(self, code: int) -> None:
        word = _NOT_READ.get(code)
        if word is None:
            raise self._damaged(f"opcode {code:#04x}")
        raise UntrustedError(
            f"{self._cursor.file} is a pickle that does more than build tensors",
            expected="opcodes of protocols 2 to 5 that build plain values",
            found=f"opcode {word}",
            hint="save it again with the current version of the program that wrote it",
        )

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._cursor.take(layout.size))[0]

    def _push_number(self, layout: struct.Struct) -> None:
        self._stack.append(self._number(layout))

    def _push_known(self, layout: struct.Struct) -> None:
        self._stack.append(self._get(self._number(layout)))

    def _keep(self, layout: struct.Struct) -> None:
        self._put(self._number(layout))

    def _skip(self, layout: str) -> None:
        """A protocol, or the length of a frame: neither changes what the pickle says."""
        self._cursor.take(struct.calcsize(layout))

    def _push_tuple(self, count: int) -> None:
        start = len(self._stack) - count
        self._stack[start:] = [self._values(self._stack[start:], count)]

    def _push_sized(self, layout: struct.Struct, kind: str) -> None:
        length = self._number(layout)
        if not 0 <= length <= (_MAX_INTEGER_BYTES if kind == "integer" else _MAX_TEXT_BYTES):
            raise self._damaged(f"{kind} of {length} bytes")
        data = self._cursor.take(length)
        if kind == "text":
            self._stack.append(data.decode("utf-8", "surrogatepass"))
        elif kind == "integer":
            self._stack.append(int.from_bytes(data, "little", signed=True))
        else:
            self._stack.append(data.decode("latin-1") if kind == "old text" else data)

    def _get(self, index: int) -> Any:
        if index < len(self._memo):
            return self._memo[index]
        if index not in self._sparse:
            raise ValueError("a reference to nothing")
        return self._sparse[index]

    def _put(self, index: int) -> None:
        if index == len(self._memo):
            self._memo.append(self._top())
        elif index < len(self._memo):
            self._memo[index] = self._top()
        else:  # a writer numbers from 1, or leaves numbers out
            self._sparse[index] = self._top()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("nothing to refer to")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise ValueError("no mark")

    @staticmethod
    def _values(values: list[Any], count: int) -> tuple[Any, ...]:
        if len(values) != count or _MARK in values:
            raise ValueError("too few values")
        return tuple(values)

    def _add_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, Pairs) or len(values) % 2:
            raise ValueError("no dictionary to add to")
        target.pairs += zip(values[::2], values[1::2], strict=True)

    def _add_values(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise TypeError("no list to add to")
        target += values

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = Global(module, name)
        if found not in self._names and not self._inert(found):
            raise self.untrusted(found)
        self._stack.append(found)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError("nothing that can be made")
        build = self._names.get(function)
        if build is None:
            raise self.untrusted(function)
        self._stack.append(build(arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, Pairs):  # attributes of a dictionary (a state dict's `_metadata`) are left out
            raise TypeError("nothing that has a state")

    def _refer(self) -> None:
        if self._persistent is None:
            raise UntrustedError(f"{self._cursor.file} refers to something outside its pickle")
        self._stack.append(self._persistent(self._pop()))

    def untrusted(self, name: Global) -> UntrustedError:
        """The refusal of a name."""
        text = str(name)
        return UntrustedError(
            f"{self._cursor.file} names {text[:120]}, which is no tensor and no plain value; nothing was run",
            found=text[:200],
            hint="load it where you trust it, and save only tensors and plain values, such as a state_dict",
        )

    def _damaged(self, found: object) -> CorruptionError:
        file = self._cursor.file
        return CorruptionError(f"{file} is damaged: not a pickle that can be read", file=file, found=found)
