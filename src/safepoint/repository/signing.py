"""Signatures: Ed25519 over a canonical statement about a snapshot or a file, and through digests over every byte.

Invariant: what is signed is read from the store when it is signed or checked, never taken from the signature.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import blake3
import msgspec
import numpy as np

from safepoint.codec import digest, unseal
from safepoint.errors import CorruptionError, NotFoundError, UnsupportedError, UntrustedError
from safepoint.limits import MAX_DOCUMENT_BYTES, MAX_KEY_BYTES
from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import snapshot_file
from safepoint.repository.schema import Count, SnapshotDocument, decode_sealed, encode
from safepoint.store import replace_file
from safepoint.store.files import close, fill_from, open_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".sig"
"""What is added to a file's name for its detached signature."""

_PIECE_BYTES = 4 << 20


class SnapshotStatement(msgspec.Struct, frozen=True):
    """What a signature of a snapshot says, as canonical JSON; `snapshot` is the digest that seals its document."""

    statement: Literal["safepoint snapshot"]
    version: Literal[1]
    repository: str
    number: int
    step: int
    parent: int | None
    time: str
    metrics: list[tuple[str, Any]]
    manifest: str
    snapshot: str


class FileStatement(msgspec.Struct, frozen=True):
    """What a signature of a file says, as canonical JSON."""

    statement: Literal["safepoint file"]
    version: Literal[1]
    num_bytes: Count
    digest: str


class SignedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detached signature: what `<file>.sig` holds."""

    statement: FileStatement
    key: str
    signature: str


def sign_snapshot(documents: Documents, snapshot: Snapshot, key: bytes) -> tuple[str, str]:
    """(public key, signature) over a snapshot, both hexadecimal.

    Args:
        documents: of its repository.
        snapshot: to sign.
        key: a private Ed25519 key, PEM without a password.

    Raises:
        CorruptionError: its document is damaged.
        UnsupportedError: that is no such key, or `cryptography` is not installed.
    """
    private = _private_key(key)
    return _raw(private.public_key()), private.sign(_statement(documents, snapshot.number)).hex()


def check_snapshot(documents: Documents, snapshot: Snapshot, key: bytes) -> str:
    """Whether a snapshot is signed with the private half of a public Ed25519 key (PEM); returns that key, hexadecimal.

    Raises:
        UntrustedError: it is not, or was changed since.
        UnsupportedError: that is no such key, or `cryptography` is not installed.
    """
    public = _public_key(key)
    name = _raw(public)
    statement = _statement(documents, snapshot.number)
    what = f"snapshot {snapshot.number} (step {snapshot.step}) of {documents.store.location}"
    signatures = [signature for signer, signature in snapshot.signatures if signer == name]
    if not signatures:
        signers = ", ".join(dict.fromkeys(signer for signer, _ in snapshot.signatures))
        raise UntrustedError(
            f"{what} is not signed with this key", expected=f"key {name}", found=signers or "no signature"
        )
    if not any(_fits(public, statement, signature) for signature in signatures):
        raise UntrustedError(f"{what} is not what was signed", expected=f"a signature with key {name}", found="another")
    return name


def sign_file(path: str | os.PathLike[str], key: bytes) -> Path:
    """Sign every byte of a file; the signature goes beside it, to `<file>.sig`, replacing an older one when durable.

    Raises:
        NotFoundError: there is no such file.
        UnsupportedError: that is no private Ed25519 key, or `cryptography` is not installed.
    """
    private = _private_key(key)
    statement = _file_statement(path)
    signature = private.sign(encode(statement)).hex()
    target = Path(f"{os.fspath(path)}{SUFFIX}")
    data = encode(SignedFile(statement, _raw(private.public_key()), signature)) + b"\n"
    sink = replace_file(target)
    try:
        sink.write_small(data)
        sink.commit(len(data))
    finally:
        sink.abort()
    return target


def check_file(path: str | os.PathLike[str], key: bytes) -> str:
    """Whether a file is what was signed with the private half of a public key; returns that key, hexadecimal.

    Raises:
        UntrustedError: it is not: no signature, another key's, or another file's.
        UnsupportedError: that is no public Ed25519 key, or `cryptography` is not installed.
    """
    public = _public_key(key)
    name, file = _raw(public), f"{os.fspath(path)}{SUFFIX}"
    try:
        signed = msgspec.json.decode(_read_small(file, MAX_KEY_BYTES), type=SignedFile)
    except NotFoundError:
        raise UntrustedError(f"{path} is not signed", expected=file, found="no such file") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedError(f"{file} is no signature", expected="what safepoint sign writes", found=error) from error
    if signed.key != name:
        raise UntrustedError(
            f"{path} is not signed with this key", expected=f"key {name}", found=f"key {signed.key[:64]}"
        )
    found = _file_statement(path)
    if not _fits(public, encode(found), signed.signature):
        raise UntrustedError(
            f"{path} is not what was signed",
            expected=f"digest {signed.statement.digest[:64]}",
            found=f"digest {found.digest}",
        )
    return name


def read_key(path: str | os.PathLike[str]) -> bytes:
    """A key's file.

    Raises:
        NotFoundError: there is none.
        CorruptionError: it is far too long.
    """
    return _read_small(os.fspath(path), MAX_KEY_BYTES)


def _statement(documents: Documents, number: int) -> bytes:
    file = snapshot_file(number)
    data = documents.store.read(file, at_most=MAX_DOCUMENT_BYTES)
    document = decode_sealed(data, SnapshotDocument, file=file)
    if document != documents.snapshot(number):
        raise CorruptionError(f"{file} changed while it was in use", file=file)
    statement = SnapshotStatement(
        statement="safepoint snapshot",
        version=1,
        repository=document.repository,
        number=document.number,
        step=document.step,
        parent=document.parent,
        time=document.time,
        metrics=document.metrics,
        manifest=document.manifest.digest,
        snapshot=digest(unseal(data, file=file)),
    )
    return encode(statement)


def _file_statement(path: str | os.PathLike[str]) -> FileStatement:
    descriptor = open_file(os.fspath(path))
    try:
        num_bytes = os.fstat(descriptor).st_size
        running = blake3.blake3()
        buffer = np.empty(min(_PIECE_BYTES, max(1, num_bytes)), np.uint8)
        for start in range(0, num_bytes, _PIECE_BYTES):
            part = buffer[: min(_PIECE_BYTES, num_bytes - start)]
            fill_from(descriptor, start, part, os.fspath(path))
            running.update(part.data)
    finally:
        close(descriptor)
    return FileStatement("safepoint file", 1, num_bytes, running.hexdigest())


def _read_small(name: str, at_most: int) -> bytes:
    descriptor = open_file(name)
    try:
        num_bytes = os.fstat(descriptor).st_size
        if num_bytes > at_most:
            raise CorruptionError(
                f"{name} is too long", file=name, expected=f"at most {at_most} bytes", found=num_bytes
            )
        data = np.empty(num_bytes, np.uint8)
        fill_from(descriptor, 0, data, name)
        return data.tobytes()
    finally:
        close(descriptor)


def _private_key(data: bytes) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    command = "openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key("private", command, error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key("private", command, type(key).__name__)
    return key


def _public_key(data: bytes) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    command = "openssl pkey -in key.pem -pubout -out public.pem"
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key("public", command, error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key("public", command, type(key).__name__)
    return key


def _no_key(half: str, command: str, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"this is no {half} Ed25519 key",
        expected=f"a {half} key in PEM, without a password",
        found=found,
        hint=f"make one: {command}",
    )


def _require_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise UnsupportedError("signatures need cryptography", hint="pip install 'safepoint[sign]'")


def _raw(public: Ed25519PublicKey) -> str:
    return public.public_bytes_raw().hex()


def _fits(public: Ed25519PublicKey, statement: bytes, signature: str) -> bool:
    from cryptography.exceptions import InvalidSignature

    if len(signature) != 128 or signature != signature.lower():
        return False
    try:
        public.verify(bytes.fromhex(signature), statement)
    except (InvalidSignature, ValueError):
        return False
    return True
