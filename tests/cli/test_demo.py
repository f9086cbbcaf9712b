"""`safepoint demo`, as far as it goes without a framework; tests/demo runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from safepoint.cli import demo


@pytest.mark.parametrize(
    "framework, hint",
    [("keras", "pip install 'safepoint[keras,tensorflow,demo]'"), ("torch", "pip install 'safepoint[torch,demo]'")],
)
def test_what_is_not_installed_is_named_with_its_extra(safepoint, monkeypatch, tmp_path, framework, hint) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = safepoint("demo", "--framework", framework, "--directory", tmp_path / "demo")
    assert result.code == 7
    assert "scikit-learn" in result.err
    assert hint in result.err
    assert not (tmp_path / "demo").exists()


def test_a_taken_folder_is_never_touched(tmp_path: Path) -> None:
    assert demo._new_folder(tmp_path / "x") == tmp_path / "x"
    assert demo._new_folder(tmp_path / "x") == tmp_path / "x"  # empty
    (tmp_path / "x" / "file").touch()
    assert demo._new_folder(tmp_path / "x") == tmp_path / "x-2"


def test_scripts_use_only_the_public_interface() -> None:
    import ast

    import safepoint

    scripts = sorted((Path(demo.__file__).parent / "demos").glob("*.py"))
    assert scripts
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("safepoint"), script
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "safepoint":
                assert node.attr in safepoint.__all__
