"""`safepoint verify`."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.cli.conftest import damage, tree

from safepoint.errors import StoreError
from safepoint.repository import Repository, write_model_file
from safepoint.store import LocalStore


def test_a_whole_run(run: Repository, safepoint) -> None:
    result = safepoint("verify", "runs/digits")
    assert result.code == 0
    assert result.out.startswith("✓ whole  ·  runs/digits  ·  5 snapshots  ·  ")
    assert result.err == ""
    assert all(snapshot.verified for snapshot in Repository("runs/digits").snapshots)
    assert safepoint("verify", "runs/digits", "-q").out == ""


def test_json_is_one_document_with_these_fields(run: Repository, safepoint) -> None:
    file = damage(run, 3)
    result = safepoint("verify", "runs/digits", "--json")
    assert result.code == 5
    assert result.err == ""
    document = result.json
    assert list(document) == ["ok", "repository", "reference", "whole", "broken", "num_bytes", "damage"]
    assert document["ok"] is False
    assert document["broken"] == [3]
    assert document["whole"] == [0, 1, 2, 4]
    (item,) = document["damage"]
    assert list(item) == ["file", "tensor", "bytes", "rows", "snapshots", "message"]
    assert (item["file"], item["tensor"], item["bytes"]) == (file, "model/encoder.weight", [0, 20_000])
    assert item["rows"] == [0, 100]


def test_damage_names_file_tensor_bytes_and_snapshots(run: Repository, safepoint) -> None:
    damage(run, 3)
    result = safepoint("verify", "runs/digits")
    assert result.code == 5
    assert result.out.startswith("✗ damaged  ·  runs/digits  ·  1 place")
    for word in ("packs/", "model/encoder.weight", "0-20,000", "whole: 0-2, 4", "runs/digits@id:4"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert safepoint("verify", "runs/digits", "-q").out != ""


def test_one_snapshot(run: Repository, safepoint) -> None:
    damage(run, 3)
    assert safepoint("verify", "runs/digits@latest").code == 0
    assert safepoint("verify", "runs/digits@39").code == 5


def test_a_lost_pack_and_a_lost_manifest(run: Repository, safepoint) -> None:
    Path("runs/digits/manifests", f"{run.resolve('id:1').manifest.id}.json").unlink()
    manifest = run.manifest(run.resolve("id:2"))
    Path("runs/digits/packs", f"{manifest.stored['model/encoder.weight'].blocks[0].pack}.safetensors").unlink()
    result = safepoint("verify", "runs/digits", "--json")
    assert result.code == 5
    assert set(result.json["broken"]) >= {1, 2}


def test_a_read_only_run_can_be_verified(run: Repository, safepoint, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise StoreError("cannot write", error=OSError(errno.EROFS, "Read-only file system"))

    monkeypatch.setattr(LocalStore, "create", refuse)  # tests run as root too, who may write anywhere
    assert safepoint("verify", "runs/digits").code == 0
    assert safepoint("tag", "runs/digits", "x").code == 12


def test_a_model_file(run: Repository, safepoint) -> None:
    write_model_file("digits.model", tree(1), structure={}, format="keras")
    assert safepoint("verify", "digits.model").out.startswith("✓ whole  ·  digits.model  ·  model file  ·  ")
    data = bytearray(Path("digits.model").read_bytes())
    data[-1] ^= 1
    Path("digits.model").write_bytes(data)
    result = safepoint("verify", "digits.model", "--json")
    assert result.code == 5
    assert list(result.json) == ["ok", "path", "num_bytes", "damage"]
    (item,) = result.json["damage"]
    assert item["tensor"] in {"optimizer/encoder.weight/exp_avg", "model/frozen"}
    assert "digits.model" in safepoint("verify", "digits.model").out


def test_a_model_file_with_a_damaged_header(run: Repository, safepoint) -> None:
    write_model_file("digits.model", tree(1), structure={"a": "b"}, format="keras")
    data = Path("digits.model").read_bytes()
    Path("digits.model").write_bytes(data.replace(b"encoder.weight", b"encoder.weighs"))
    result = safepoint("verify", "digits.model")
    assert result.code == 5
    assert "damaged" in result.out


def test_a_sample(run: Repository, safepoint) -> None:
    result = safepoint("verify", "runs/digits", "--sample", "5%")
    assert result.code == 0
    assert result.out.startswith("✓ whole  ·  runs/digits  ·  a sample  ·  ")
    assert not any(snapshot.verified for snapshot in Repository("runs/digits").snapshots)
    assert safepoint("verify", "runs/digits", "--sample", "100%", "--json").json["sample"] == 1.0
    damage(run, 3)
    assert safepoint("verify", "runs/digits", "--sample", "100").code == 5
    for wrong in ("0", "-1", "101%", "x", "nan"):
        assert safepoint("verify", "runs/digits", "--sample", wrong).code == 2


def test_a_sample_of_a_model_file_is_refused(tmp_path: Path, safepoint) -> None:
    write_model_file(tmp_path / "m", tree(1), structure={}, format="keras")
    assert safepoint("verify", tmp_path / "m", "--sample", "5%").code == 2
