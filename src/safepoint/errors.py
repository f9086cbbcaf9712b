"""Every error that crosses safepoint's public boundary, in one tree.

- SafepointError                 1
  - NotFoundError               10   nothing there, or not what was named
  - MismatchError                4   the snapshot does not fit the live objects
  - ExistsError                  6   a name that is taken, a history that would be mixed
  - CorruptionError              5   bytes that are not what was written
  - UnsupportedError             7   valid, but not something this version does
  - UntrustedError               8   a file names code that nobody allowed
  - ConflictError               11   another writer came between
  - StoreError (OSError)        12   the disk or the object store refused
  - RestoreInterrupted          13   live objects may be incomplete: restore again

The number is the exit code of the command line. Codes and exit codes are append-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class SafepointError(Exception):
    """Base of every error safepoint raises: what happened, what was expected and found, what to do next.

    Attributes:
        code: stable, machine-readable name of the kind of error.
        exit_code: what the command line exits with.
        expected: what safepoint expected, or None.
        found: what it found instead, or None.
        hint: the next step for the reader, or None.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, expected: object = None, found: object = None, hint: str | None = None) -> None:
        self.message = message
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.hint = hint
        super().__init__(message)

    def advise(self, hint: str) -> None:
        """Say what to do next, if nothing was said where the error was found: there, less is known."""
        self.hint = self.hint or hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if self.hint is not None:
            lines.append(f"  next:     {self.hint}")
        return "\n".join(lines)


class NotFoundError(SafepointError):
    """A path, repository, snapshot, tag or name does not exist."""

    code = "not_found"
    exit_code = 10


class MismatchError(SafepointError):
    """The snapshot does not fit the live objects; nothing was changed.

    Attributes:
        missing: names that live objects have and the snapshot lacks.
        unexpected: names that the snapshot has and the live objects lack.
        differs: name → (live, saved), where shape or dtype differ.
    """

    code = "mismatch"
    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        differs: Mapping[str, tuple[object, object]] | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.differs = dict(differs or {})
        super().__init__(message, expected=expected, found=found, hint=hint)


class ExistsError(SafepointError):
    """A name is taken, or a save would mix two histories; nothing was changed."""

    code = "exists"
    exit_code = 6


class CorruptionError(SafepointError):
    """Bytes on disk are not the bytes that were written.

    Attributes:
        file: the damaged file, relative to its repository, or a path.
        name: the tensor or value concerned, or None.
        span: (first, last + 1) byte of the damage inside the tensor, or None.
        rows: (first, last + 1) index along its first axis that these bytes belong to, or None.
    """

    code = "corruption"
    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        name: str | None = None,
        span: tuple[int, int] | None = None,
        rows: tuple[int, int] | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.file = file
        self.name = name
        self.span = span
        self.rows = rows
        super().__init__(message, expected=expected, found=found, hint=hint)


class UnsupportedError(SafepointError):
    """The request or the file is well-formed, but this version does not do it."""

    code = "unsupported"
    exit_code = 7


class UntrustedError(SafepointError):
    """A file names code that nobody allowed, and nothing ran; or no signature of the key that is trusted fits."""

    code = "untrusted"
    exit_code = 8


class ConflictError(SafepointError):
    """Another writer committed in between; nothing of this save was committed."""

    code = "conflict"
    exit_code = 11


class StoreError(SafepointError, OSError):
    """The disk or the object store refused; everything committed before is untouched.

    Attributes:
        errno: the operating system's error number, or None.
        filename: the path concerned, or None.
    """

    code = "store"
    exit_code = 12

    def __init__(
        self,
        message: str,
        *,
        error: OSError | None = None,
        path: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        SafepointError.__init__(
            self, message, expected=expected, found=found if found is not None else error, hint=hint
        )
        self.errno = None if error is None else error.errno
        self.filename = path


class RestoreInterrupted(SafepointError):
    """A restore failed after it had begun to change live objects: their state is incomplete, restore again."""

    code = "restore_interrupted"
    exit_code = 13
