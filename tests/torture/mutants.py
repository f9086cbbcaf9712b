"""Mutation testing: one small change to a source at a time, in a process of its own; tests that pass have seen nothing.

    make mutants [MUTANTS=20] [SEED=1]      so many of each module, drawn by the seed; prints the survivors

Own, and small, because the sources stay where they are: a child process imports one module from a changed syntax tree,
everything else as it is. Messages of errors, annotations and docstrings are not changed: no test should pin those.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import random
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[2]
REPOSITORY = ["tests/repository/test_rules.py", "tests/repository/test_pack.py", "tests/repository/test_damage.py"]
# Module → the tests that are there for it, quickest first.
MODULES: dict[str, list[str]] = {
    "codec.header": [
        "tests/parsers/test_headers.py",
        "tests/attacks/test_headers.py",
        "tests/attacks/test_safetensors.py",
    ],
    "codec.values": ["tests/parsers/test_values.py", "tests/repository/test_rules.py"],
    "codec.strict_json": ["tests/attacks/test_headers.py", "tests/repository/test_damage.py"],
    "codec.hdf5_texts": ["tests/parsers/test_hdf5_texts.py"],
    "formats.pickles": ["tests/parsers/test_pickles.py", "tests/attacks/test_pytorch.py"],
    "formats.cursor": ["tests/parsers/test_cursor.py"],
    "formats.protobuf": ["tests/parsers/test_protobuf.py"],
    "formats.sstable": ["tests/parsers/test_sstable.py"],
    "repository.schema": ["tests/parsers/test_schema.py", "tests/repository/test_rules.py", "tests/golden"],
    "repository.stored": ["tests/parsers/test_stored.py", *REPOSITORY],
    "repository.collect": ["tests/repository/test_sweep.py", "tests/repository/test_rules.py"],
    "repository.commit": [
        "tests/repository/test_commit.py",
        *REPOSITORY,
        "tests/repository/test_healing.py",
        "tests/crash/test_store_faults.py",
    ],
    "repository.verify": [
        "tests/repository/test_verify.py",
        "tests/repository/test_repair.py",
        "tests/repository/test_damage.py",
    ],
    "repository.signing": ["tests/repository/test_signing.py"],
}
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Mod: ast.FloorDiv,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of a module."""

    module: str
    line: int
    what: str
    tree: ast.Module


def path_of(module: str) -> Path:
    return ROOT / "src" / "safepoint" / f"{module.replace('.', '/')}.py"


def mutants(module: str) -> list[int]:
    """Where a change is known, in the order of the source."""
    source = ast.parse(path_of(module).read_text(encoding="utf-8"))
    return [number for number, node in enumerate(_code(source)) if _change(copy.deepcopy(node)) is not None]


def mutant(module: str, number: int) -> Mutant:
    """One of them."""
    source = ast.parse(path_of(module).read_text(encoding="utf-8"))
    node = list(_code(source))[number]
    before, line = ast.unparse(node).partition("\n")[0][:70], getattr(node, "lineno", 0)
    after = _change(node)
    return Mutant(module, line, f"`{before}` → {after}", ast.fix_missing_locations(source))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What is run, without annotations, docstrings, `TYPE_CHECKING` and the words of errors."""
    if isinstance(node, ast.Raise):
        yield node
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.keyword) and node.arg in {"frozen", "gc"}:  # of a class: change nothing that is asked
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_comment"} or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _change(node: ast.AST) -> str | None:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Constant):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "the other way round"
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Raise):
        _become(node, ast.Pass())
        return "left out"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        node.value = ast.Constant(None)
        return "left out"
    elif isinstance(node, ast.Continue | ast.Break):
        _become(node, ast.Pass())
        return "left out"
    else:
        return None
    return f"`{ast.unparse(node)[:70]}`"


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = other.__class__  # type: ignore[assignment]
    for name in list(vars(node)):
        if name not in {"lineno", "col_offset", "end_lineno", "end_col_offset"}:
            delattr(node, name)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


class _Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, and compiles it from a tree."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(f"safepoint.{mutant.module}", str(path_of(mutant.module)))
        self.code = compile(mutant.tree, self.path, "exec")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self.code


def run(tests: list[str], mutant: Mutant | None, *, most_seconds: float = 600) -> tuple[bool, float]:
    """Whether the tests pass in a forked process, and its CPU seconds; one that takes too many does not."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(most_seconds) + 1, int(most_seconds) + 1))
        if mutant is not None:
            sys.meta_path.insert(0, _Changed(mutant))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 1
        try:
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-o", "timeout=60", *tests]))
        finally:
            os._exit(code)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0, used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    options = parser.parse_args()
    os.chdir(ROOT)
    print(f"seed {options.seed}, {options.each} of each module\n")
    print("| Module | Mutants | Tried | Killed |\n|---|---:|---:|---:|")
    survivors: list[Mutant] = []
    tried = killed = 0
    for module in options.modules:
        fine, seconds = run(MODULES[module], None)
        if not fine:
            raise SystemExit(f"the tests of {module} fail without any change")
        known = list(mutants(module))
        chosen = random.Random(f"{options.seed}/{module}").sample(known, min(options.each, len(known)))
        changed = [mutant(module, number) for number in sorted(chosen)]
        left = [m for m in changed if run(MODULES[module], m, most_seconds=3 + 3 * seconds)[0]]
        survivors += left
        tried, killed = tried + len(chosen), killed + len(chosen) - len(left)
        print(f"| `{module}` | {len(known)} | {len(chosen)} | {len(chosen) - len(left)} |", flush=True)
        for m in left:
            print(f"  survivor {m.module}:{m.line} {m.what}", file=sys.stderr, flush=True)
    print(f"\n{killed} of {tried} killed ({100 * killed / max(1, tried):.0f} %). Survivors:\n")
    for m in survivors:
        print(f"- `{m.module}` line {m.line}: {m.what}")
    return 0


if __name__ == "__main__":
    import hypothesis  # noqa: F401 — imported once, for all children
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401

    sys.path.insert(0, str(ROOT))
    sys.exit(main())
