"""`safepoint sign`: an Ed25519 signature over every byte of a snapshot or a model file."""

from __future__ import annotations

from pathlib import Path

import click

from safepoint.cli.command import command


@command(
    short="Sign a snapshot or a model file.",
    examples=[
        "safepoint sign runs/digits@best --key key.pem",
        "safepoint verify runs/digits@best --key public.pem",
        "openssl genpkey -algorithm ed25519 -out key.pem",
        "openssl pkey -in key.pem -pubout -out public.pem",
    ],
    quiet="Print nothing.",
)
@click.argument("ref")
@click.option("--key", required=True, metavar="FILE", help="A private Ed25519 key, PEM without a password.")
def sign(ref: str, key: str, as_json: bool, quiet: bool) -> None:
    """Sign a snapshot, or a model file, whose signature goes to FILE.sig.

    The signature covers every byte of its tensors and values, its step, time, metrics, configuration and parent, and
    stays valid when the run is compacted. Tags and metrics that are added later are not covered.
    """
    from safepoint.cli.output import cell, emit, stdout
    from safepoint.cli.subject import find, find_snapshot, reference_of
    from safepoint.repository.signing import read_key, sign_file

    secret = read_key(key)
    found = find(ref)
    if isinstance(found, Path):
        document = {"path": str(found), "signature": str(sign_file(found, secret))}
        words = f"{found} is signed: {document['signature']}"
    else:
        repository, snapshot = find_snapshot(ref)
        signed = repository.sign(f"id:{snapshot.number}", secret)
        document = {"reference": reference_of(repository, signed.number), "key": signed.signatures[-1][0]}
        words = f"{document['reference']}, step {signed.step}, is signed with key {document['key']}"
    if as_json:
        emit(document)
    elif not quiet:
        stdout().print(cell(words))
