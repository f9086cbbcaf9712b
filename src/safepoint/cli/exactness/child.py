"""The process that a script runs in: as `python SCRIPT ARGS` would run it, watched.

    python -c "from safepoint.cli.exactness.child import main; main()" PLAN SCRIPT [ARGS]

PLAN is JSON. The script is `__main__`, sees its own `sys.argv`, and finds its neighbours by `sys.path[0]`.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

import msgspec

from safepoint.cli.exactness.recorder import Recorder, watch
from safepoint.cli.exactness.records import Plan


def main() -> None:
    """Run a script; its exit code is this process'."""
    _, plan, script, *arguments = sys.argv
    path = os.path.abspath(script)  # noqa: PTH100 — not `resolve`: `__file__` keeps the name of a link
    recorder = Recorder(msgspec.json.decode(plan, type=Plan), Path(path))
    watch(recorder)
    sys.argv = [script, *arguments]
    folder = str(Path(script).resolve().parent)
    if sys.flags.safe_path:
        sys.path.insert(0, folder)
    else:
        sys.path[0] = folder  # was the current folder, for -c
    try:
        _run(path)
    except SystemExit:
        recorder.ended()
        raise
    except BaseException as error:  # noqa: BLE001 — told as Python tells it, without our own frames
        told = error.with_traceback(_own_frames(error))
        traceback.print_exception(told)
        sys.exit(1)
    recorder.ended()


def _run(script: str) -> None:  # an absolute path, as Python makes it
    """Not `runpy`: it takes the module away at the end, when saves in the background still need it."""
    module = ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    with io.open_code(script) as file:
        code = compile(file.read(), script, "exec")
    exec(code, module.__dict__)  # noqa: S102 — the user's own script, on the user's own command


def _own_frames(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace
