"""What safepoint makes the process do, seen by an audit hook: nothing of a file is run, imported, unpickled or sent.

One hook for the whole suite. `tests/conftest.py` fails any test in which something forbidden happened while a frame of
safepoint was on the stack; `tests/attacks/watching.py` also looks at what is opened, in all threads.

Whether an event is allowed is decided by who asks for it, never by a name that could have come out of a file:

- `import` statements, whose names stand in sources, and what modules do while they are imported from where software is
  installed; and the tests and the few functions of `LAZY_LOADERS`, which import by names of their own;
- frameworks and users' classes may compile and run what they make themselves: the nearest frame outside the standard
  library decides;
- pickles: never, whoever asks; sockets and, but for commands that run a user's script, other processes: only while
  installed software is imported, some of which looks at the machine so (h5py asks `uname`, urllib3 for IPv6);
- but for what a loader's own workers send it, which is `OWN_WORKERS`.
"""

from __future__ import annotations

import dis
import encodings.cp437  # of names in zip files, which whoever opens the first one would import
import encodings.utf_16_be  # noqa: F401 — of texts in PDFs, likewise
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_ROOT = Path(__file__).parents[1]
SOURCES = f"{_ROOT}/src/safepoint/"
_TESTS = f"{_ROOT}/tests/"
_LIBRARY = f"{sysconfig.get_path('stdlib')}/"
_PACKAGES = f"{sysconfig.get_path('purelib')}/"
_PLACES = (SOURCES, _TESTS, _LIBRARY, _PACKAGES, "<frozen ", f"{_ROOT}/examples/")
_IMPORTING = ("<frozen importlib", f"{_LIBRARY}importlib/")
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]

NEVER = (
    "pickle.", "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "urllib.", "http.", "ftplib.",
    "smtplib.", "webbrowser.", "pty.",
)  # fmt: skip
ASKED = ("exec", "compile", "import", "marshal.load", "code.__new__", "ctypes.dlopen")
_WATCHED = (*NEVER, *ASKED)

# Files whose business is to run a user's script.
_RUN_SCRIPTS = tuple(f"{SOURCES}cli/{name}" for name in ("demo", "exactness/", "bench", "machine", "verify_resume"))
# (end of the file, function): import by names of their own, never by one out of a file.
LAZY_LOADERS = {
    ("safepoint/__init__.py", "__getattr__"),
    ("safepoint/adapters/__init__.py", "loaded"),
    ("safepoint/adapters/__init__.py", "processes"),
    ("safepoint/adapters/__init__.py", "whole_models"),
    ("safepoint/adapters/jax/whole_model/classes.py", "check"),
    ("safepoint/adapters/torch/whole_model/isolation.py", "constructing"),  # torch, as `with torch.device` begins
    ("safepoint/cli/program.py", "get_command"),
    ("site-packages/_pytest/monkeypatch.py", "resolve"),
    ("site-packages/matplotlib/backend_bases.py", "get_registered_canvas_class"),  # of the kind of file that is written
    ("site-packages/rich/_unicode_data/__init__.py", "load"),
    ("site-packages/transformers/utils/import_utils.py", "_get_module"),  # of models that it publishes: hugging_face.py
}

# Takes batches out of the queue of processes that it started, from the same code and data.
OWN_WORKERS = ("site-packages/torch/utils/data/dataloader.py", "_try_get_data")

violations: list[str] = []
_listener: list[tuple[str, Any, str | None]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listener is not None and event == "open":
        _listener.append((event, arguments[0], None))
        return
    if not event.startswith(_WATCHED):
        return
    frame = sys._getframe(1) if event != "sys._getframe" else None
    if _listener is not None:
        _listener.append((event, _what(arguments), forbidden(event, arguments, frame)))
    elif _is_ours(frame) and (why := forbidden(event, arguments, frame)):
        violations.append(f"{event} {_what(arguments)}: {why}")


def forbidden(event: str, arguments: tuple[Any, ...], frame: FrameType | None) -> str | None:
    """Why what a frame does is not allowed; None if it is."""
    if event.startswith(NEVER) and (event.startswith("pickle.") or not _is_import(frame, event)):
        if event.startswith(("pickle.", "socket.")) and _is_from_own_workers(frame):
            return None
        asker = _asker(frame)
        if event.startswith(("subprocess.", "os.posix_spawn", "os.exec")) and asker.startswith(_RUN_SCRIPTS):
            return None
        return f"nobody may do that; asked for by {asker}"
    if _is_import(frame, event):
        code = arguments[0] if arguments else None
        if event == "exec" and _imports(frame) and isinstance(code, CodeType) and not _is_installed(code):
            return f"the module is not where software is installed: {code.co_filename}"
        return None
    asker = _asker(frame)
    if event.startswith("marshal."):
        return f"code is loaded by {asker}"
    if event == "import" or _imports(frame):
        return f"imported by a name, not by a statement, in {asker}"
    return f"asked for by {asker}" if asker.startswith(SOURCES) else None


@contextmanager
def listening() -> Iterator[list[tuple[str, Any, str | None]]]:
    """Every event of every thread: (event, what, why it is forbidden); files that are opened too."""
    global _listener  # noqa: PLW0603 — a hook cannot be taken away again
    seen: list[tuple[str, Any, str | None]] = []
    _listener = seen
    try:
        yield seen
    finally:
        _listener = None


def _is_installed(code: CodeType) -> bool:
    """Whether it is in a place of software; what a wheel brings compiled may not say where it was."""
    return code.co_filename.startswith(_PLACES) or code.co_filename == "<string>"


def is_machine(path: Path) -> bool:
    """Whether a file is of the machine or its software, not somebody's."""
    return str(path).startswith((*_PLACES, "/proc/", "/sys/", "/dev/null", "/dev/urandom"))


def _is_ours(frame: FrameType | None) -> bool:
    """Whether safepoint is on the stack, other than to save a model: what tracing it takes concerns no file."""
    found = False
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCES):
            found = True
            if frame.f_code.co_name == "save_model":
                return False
        frame = frame.f_back
    return found


def _is_import(frame: FrameType | None, event: str) -> bool:
    """Whether an import statement, or one who imports by names of his own, is on the way to this."""
    if event == "import" and frame is not None and _may_import(frame):
        return True
    while frame is not None:
        outer = frame.f_back
        if outer is not None and _is_importing(frame) and not _is_importing(outer) and _may_import(outer):
            return True
        frame = outer
    return False


def _is_from_own_workers(frame: FrameType | None) -> bool:
    file, function = OWN_WORKERS
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


def _imports(frame: FrameType | None) -> bool:
    return frame is not None and _is_importing(frame)


def _is_importing(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_IMPORTING)


def _may_import(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_code[frame.f_lasti] == _IMPORT_NAME or code.co_filename.startswith(_TESTS):
        return True
    return any(code.co_name == function and code.co_filename.endswith(file) for file, function in LAZY_LOADERS)


def _asker(frame: FrameType | None) -> str:
    """The file and function that is nearest outside the standard library and code that was made by it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(("<", _LIBRARY)) or file.startswith(_PACKAGES):
            return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "the standard library"


def _what(arguments: tuple[Any, ...]) -> str:
    return repr(arguments[0])[:200] if arguments else ""


sys.addaudithook(_hook)
