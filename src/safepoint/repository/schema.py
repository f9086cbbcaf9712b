"""The documents of a repository, as they are on disk (format version 1). FORMAT.md is the normative text.

Invariant: fields are only ever added, with defaults; order that means something is a list.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from safepoint.codec import parse_json, seal, unseal
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.limits import MAX_DOCUMENT_BYTES

FORMAT_VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()

T = TypeVar("T", bound=msgspec.Struct)
Version: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
FileId: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{24}\\Z")]
RepositoryId: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}\\Z")]


class FormatDocument(msgspec.Struct, frozen=True):
    """`safepoint.json`: what this folder is.

    Attributes:
        format: always "safepoint".
        version: of the format; a reader refuses a newer one.
        id: of the repository, random, never changed.
    """

    format: Literal["safepoint"]
    version: Version
    id: RepositoryId


class BlockDocument(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one block is and what it must be: `[pack, offset, length, digest, checksum]`.

    Attributes:
        pack: index into the manifest's list of packs.
        offset: of its first byte in the pack's file.
        length: in bytes.
        digest: BLAKE3-256, lower-case hexadecimal.
        checksum: XXH3-64, lower-case hexadecimal.
    """

    pack: Count
    offset: Count
    length: Count
    digest: str
    checksum: str


class ShardDocument(msgspec.Struct, frozen=True, gc=False):
    """A box of a tensor: where it starts, its shape, and its blocks in order. Version 1 writes one a tensor."""

    offset: list[Count]
    shape: list[Count]
    blocks: list[BlockDocument]


class TensorDocument(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A tensor of a manifest.

    Attributes:
        name: its full name.
        dtype: a key of `safepoint.tree.DTYPES`.
        shape: of the whole tensor.
        shards: that cover it.
        value: "" for a tensor; "str", "bytes" or "int" for a large value that is kept as blocks.
        codec: how its blocks are encoded; "" for raw, and nothing else in version 1.
    """

    name: str
    dtype: str
    shape: list[Count]
    shards: list[ShardDocument]
    value: Literal["", "str", "bytes", "int"] = ""
    codec: str = ""


class PackDocument(msgspec.Struct, frozen=True):
    """A pack that a manifest needs.

    Attributes:
        id: its file is `packs/<id>.safetensors`.
        num_bytes: of the file.
        header_bytes: of its safetensors header, the 8 bytes of its length included: where the data starts.
        header_digest: BLAKE3 of those, so that every byte of a pack is under a digest.
    """

    id: FileId
    num_bytes: Count
    header_bytes: Count
    header_digest: str


class ManifestDocument(msgspec.Struct, frozen=True):
    """`manifests/<id>.json`: what one checkpoint contains.

    Attributes:
        version: of the format.
        packs: that its blocks are in.
        skeleton: see `codec.values`.
        values: [name, value] pairs in order; see `codec.values`.
        tensors: in order.
    """

    version: Version
    packs: list[PackDocument]
    skeleton: Any
    values: list[tuple[str, Any]]
    tensors: list[TensorDocument]


class MovedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """`moved/<pack>-<k>.json`, sealed: all that is known of blocks that are no longer, or damaged, in a pack.

    Attributes:
        version: of the format.
        repository: id of the repository it belongs to.
        pack: id of the pack that it is about.
        k: of the document; of those about a pack the highest holds.
        time: when it was written, RFC 3339 in UTC.
        packs: that blocks were moved to.
        blocks: that are elsewhere now, as [offset, length, index into packs, offset there].
        damaged: blocks that were found damaged and are not written again yet, as [offset, length, digest].
    """

    version: Version
    repository: RepositoryId
    pack: FileId
    k: Count
    time: str
    packs: list[PackDocument] = []
    blocks: list[tuple[Count, Count, Count, Count]] = []
    damaged: list[tuple[Count, Count, str]] = []


class ManifestReference(msgspec.Struct, frozen=True):
    """A manifest: its id (`manifests/<id>.json`), size, and the BLAKE3 digest of its bytes."""

    id: FileId
    num_bytes: Count
    digest: str


class TotalsDocument(msgspec.Struct, frozen=True):
    """What a snapshot amounts to: tensors, their bytes, and the bytes of the pack that this save had to write."""

    num_tensors: Count
    num_bytes: Count
    written_bytes: Count


class SnapshotDocument(msgspec.Struct, frozen=True):
    """`snapshots/<number>.json`, sealed: one committed checkpoint; its existence is the commit.

    Attributes:
        version: of the format.
        repository: id of the repository it belongs to.
        number: its own.
        parent: number of the snapshot it continues, or None for the start of a lineage.
        step: that was finished.
        time: of the commit, RFC 3339 in UTC.
        metrics: name → tagged number, as [name, value] pairs in order.
        config: the caller's, tagged JSON.
        tags: given at the save.
        manifest: what it contains.
        totals: what that amounts to.
        environment: versions of Python and of the frameworks in use.
    """

    version: Version
    repository: RepositoryId
    number: Count
    parent: Count | None
    step: int
    time: str
    metrics: list[tuple[str, Any]]
    config: Any
    tags: list[str]
    manifest: ManifestReference
    totals: TotalsDocument
    environment: dict[str, str]


class MarkDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """`marks/<number>-<k>.json`, sealed: all that was decided about a snapshot after its commit; the highest k holds.

    Attributes:
        version: of the format.
        repository: id of the repository it belongs to.
        number: of the snapshot.
        k: of the mark.
        time: of the decision, RFC 3339 in UTC.
        tags: that hold now, those given at the save included.
        metrics: added later, as [name, value] pairs.
        verified: time of the last full verification that passed, or None.
        pruned: whether it was given up.
        signatures: [public key, signature] pairs, hexadecimal; see `signing`.
    """

    version: Version
    repository: RepositoryId
    number: Count
    k: Count
    time: str
    tags: list[str]
    metrics: list[tuple[str, Any]] = []
    verified: str | None = None
    pruned: bool = False
    signatures: list[tuple[str, str]] = []


def encode(document: msgspec.Struct) -> bytes:
    """Canonical JSON: fields in their order, no spaces.

    Raises:
        UnsupportedError: it holds text or numbers that JSON cannot.
    """
    try:
        return msgspec.json.encode(document)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise UnsupportedError("this cannot be kept in a JSON document", found=error) from error


def encode_sealed(document: msgspec.Struct) -> bytes:
    """Canonical JSON under a seal.

    Raises:
        UnsupportedError: it is too long.
    """
    data = seal(encode(document))
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UnsupportedError(
            f"a {type(document).__name__} is too large: config, metrics and tags must be small",
            expected=f"at most {MAX_DOCUMENT_BYTES:,} bytes",
            found=f"{len(data):,} bytes",
            hint="track large values instead: state={...}",
        )
    return data


def decode(data: bytes, kind: type[T], *, file: str) -> T:
    """The document in `data`, checked against its schema.

    Raises:
        UnsupportedError: a newer version of the format wrote it.
        CorruptionError: it is none.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > FORMAT_VERSION:
            raise UnsupportedError(
                f"{file} was written in a newer format",
                expected=f"version {FORMAT_VERSION} or older",
                found=f"version {version}",
                hint="update safepoint",
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"{file} is damaged", file=file, expected=kind.__name__, found=error) from error


def decode_sealed(data: bytes, kind: type[T], *, file: str) -> T:
    """The document under the seal of `data`; raises as `decode` and `unseal`."""
    body = unseal(data, file=file)
    try:
        # Two readers could disagree on a key that stands twice.
        parse_json(body)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{file} is damaged", file=file, expected="JSON", found=error) from error
    return decode(body, kind, file=file)


class _Version(msgspec.Struct, frozen=True):
    version: Version
