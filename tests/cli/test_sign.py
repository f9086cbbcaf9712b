"""`safepoint sign`, and `safepoint verify --key`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.cli.conftest import damage, tree

from safepoint.repository import Repository, write_model_file


@pytest.fixture
def keys(run: Repository) -> None:
    for command in ("genpkey -algorithm ed25519 -out key.pem", "pkey -in key.pem -pubout -out public.pem"):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)


def test_a_snapshot(run: Repository, keys: None, safepoint) -> None:
    result = safepoint("sign", "runs/digits@best", "--key", "key.pem")
    assert result.code == 0
    assert "runs/digits@id:2, step 29, is signed with key" in result.out
    result = safepoint("verify", "runs/digits@best", "--key", "public.pem")
    assert result.code == 0
    assert "signed by" in result.out
    assert len(safepoint("verify", "runs/digits@best", "--key", "public.pem", "--json").json["signed_by"]) == 64
    result = safepoint("verify", "runs/digits", "--key", "public.pem", "--json")  # the newest is not
    assert (result.code, result.error["code"]) == (8, "untrusted")
    damage(run, 2)
    assert safepoint("verify", "runs/digits@best", "--key", "public.pem").code == 5


def test_a_model_file(run: Repository, keys: None, safepoint) -> None:
    write_model_file("digits.model", tree(1), structure={}, format="keras")
    result = safepoint("sign", "digits.model", "--key", "key.pem", "--json")
    assert result.json == {"path": "digits.model", "signature": "digits.model.sig"}
    assert safepoint("verify", "digits.model", "--key", "public.pem").code == 0
    data = bytearray(Path("digits.model").read_bytes())
    data[-1] ^= 1
    Path("digits.model").write_bytes(data)
    assert safepoint("verify", "digits.model", "--key", "public.pem").code == 8


def test_wrong_keys(run: Repository, keys: None, safepoint) -> None:
    assert safepoint("sign", "runs/digits", "--key", "missing.pem").code == 10
    assert safepoint("sign", "runs/digits", "--key", "public.pem").code == 7
    assert safepoint("verify", "runs/digits", "--key", "key.pem").code == 7
    assert safepoint("sign", "runs/digits").code == 2
