"""Bytes: how tensors are cut into blocks, identified and checked, and how values and headers are spelled."""

from safepoint.codec.archive import Member, check_content, check_member, read_member, read_members, read_prefix
from safepoint.codec.blocks import BLOCK_BYTES, CHECKSUM_LENGTH, DIGEST_LENGTH, Buffer, Checksum, checksum, cut, digest
from safepoint.codec.crc32 import crc32
from safepoint.codec.header import Entry, Header, build_header, parse_header, read_header
from safepoint.codec.seal import seal, unseal
from safepoint.codec.strict_json import parse_json
from safepoint.codec.values import decode_node, decode_value, encode_node, encode_value

__all__ = [
    "BLOCK_BYTES",
    "CHECKSUM_LENGTH",
    "DIGEST_LENGTH",
    "Buffer",
    "Checksum",
    "Entry",
    "Header",
    "Member",
    "build_header",
    "check_content",
    "check_member",
    "checksum",
    "crc32",
    "cut",
    "decode_node",
    "decode_value",
    "digest",
    "encode_node",
    "encode_value",
    "parse_header",
    "parse_json",
    "read_header",
    "read_member",
    "read_members",
    "read_prefix",
    "seal",
    "unseal",
]
