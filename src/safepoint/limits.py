"""Hard limits of the format: whatever a file says, nothing larger is believed. FORMAT.md lists them.

What bounds a foreign format alone (members of an archive, entries of a pickle) stands in that format's module.

Invariant: a size that a file announces is compared with one of these, and with the file's own size, before memory is
taken for it.
"""

from __future__ import annotations

MAX_DOCUMENT_BYTES = 16 << 20
"""A sealed document: snapshot, mark, `moved/`, `safepoint.json`."""

MAX_MANIFEST_BYTES = 1 << 30
"""A manifest: some five million blocks."""

MAX_HEADER_BYTES = 100_000_000
"""The header of a safetensors file, as safetensors itself has it."""

MAX_DEPTH = 80
"""Levels of a skeleton: deeper than what adapters capture (64), shallower than what recursion allows."""

MAX_CONFIG_DEPTH = 64
"""Levels of a `config`."""

MAX_RANK = 64
"""Sizes in a shape."""

MAX_DIMENSION = 1 << 48
"""One size in a shape."""

MAX_NAME_LENGTH = 1024
"""Characters of a name."""

MAX_TAG_LENGTH = 100
"""Characters of a tag."""

MAX_TENSORS = 10_000_000
"""Leaves of one snapshot, and entries of one header."""

MAX_BLOCK_BYTES = 16 << 20
"""One block."""

MAX_KEY_BYTES = 64 << 10
"""The file of a key, or of a detached signature."""

MAX_MOVES = 64
"""How often a block may be moved on before a reader stops following it."""
