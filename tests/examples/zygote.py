"""A process that has imported an example, and with it a framework, and runs it in forked children, which it kills.

    python zygote.py EXAMPLE

Reads requests from stdin and answers on stdout, a line of JSON each. Nothing is computed before a fork, so each child
begins like a new process, without the seconds that importing takes.
"""

import contextlib
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from safepoint.api.manager import CheckpointManager
from safepoint.cli.exactness.recorder import Recorder, watch
from safepoint.cli.exactness.records import Plan

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import audit


def load(path):
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module


def tell_saves(pipe):
    """A line before each save, and one after each that was due: then its commit is on its way."""
    save = CheckpointManager.save

    def told(*arguments, **options):
        os.write(pipe, b"before\n")
        handle = save(*arguments, **options)
        if handle is not None:
            os.write(pipe, b"after %d\n" % handle.step)
        return handle

    CheckpointManager.save = told


def child(module, request, pipe):
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.setpgid(0, 0)  # its workers die with it
    random.seed(0)  # Python's generator gets a seed of its own in each child
    tell_saves(pipe)  # first: what it tells must not wait for what is recorded
    watch(Recorder(Plan(request["files"], request["records"]), Path(module.__file__)))
    module.main(**request["arguments"])
    if audit.violations:
        sys.exit("\n".join(["done by safepoint, or by what it called:", *audit.violations[:20]]))


def kill_when_due(lines, process, kill):
    """After so many saves, and then some time: wherever the process is by then. Returns what it told until it died."""
    told, seen = [], 0
    while seen < kill["saves"] and (line := lines.readline()):
        told.append(line)
        seen += line.startswith(kill["event"])
    time.sleep(kill["delay_seconds"])
    os.killpg(process, signal.SIGKILL)
    return [*told, *lines]


def serve(module):
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            child(module, request, writing)
            return  # ends as a script ends: background saves are waited for
        os.close(writing)
        with contextlib.suppress(PermissionError):
            os.setpgid(process, process)
        with os.fdopen(reading) as lines:
            told = list(lines) if request["kill"] is None else kill_when_due(lines, process, request["kill"])
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        begun = [int(line.split()[1]) for line in told if line.startswith("after") and line.endswith("\n")]
        sys.stdout.write(json.dumps({"code": code, "begun": max(begun, default=-1)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    example = load(sys.argv[1])
    if "torch" in sys.modules:  # else the first optimizer of each child would import it
        import torch._dynamo  # noqa: F401
    serve(example)
