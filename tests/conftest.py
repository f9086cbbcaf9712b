"""Which tests need frameworks, in one place, and what a skip means in CI."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tests import audit

# Folders of tests/ whose tests import a framework, or take minutes. `pytest` leaves them out, `pytest --frameworks`
# runs only them, and a path on the command line always wins. `docs` runs the README, whose examples train networks;
# `crash` and `torture` need time and no framework, and `torture` mounts disks where it may.
FRAMEWORK_FOLDERS = frozenset(
    {
        "crash", "demo", "docs", "examples", "formats", "jax", "jax_models", "keras", "plot", "real_models",
        "tensorflow", "torch", "torch_models", "torture", "whole_model",
    }
)  # fmt: skip
_MAY_SKIP = frozenset({"torture"})  # what the machine forbids; see `tests/torture/machine.py`

_TESTS = Path(__file__).parent
_IN_CI = os.environ.get("CI") == "true"

# Shared machines are slow at random, so no deadline; CI repeats what it tried.
hypothesis.settings.register_profile("safepoint", deadline=None, derandomize=_IN_CI)
hypothesis.settings.load_profile("safepoint")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--frameworks", action="store_true", help="run the tests that need frameworks, and only those")
    parser.addoption("--scale", default=0, type=float, help="tests/torture: 0 is its short form, 1 is `make torture`")
    parser.addoption("--seed", default=0, type=int, help="tests/torture: throw the same dice again")
    parser.addoption("--report", default="", help="tests/torture: folder in which to write what was done")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.args_source is pytest.Config.ArgsSource.ARGS or collection_path.parent != _TESTS:
        return None
    if not collection_path.is_dir():
        return None
    wanted = bool(config.getoption("--frameworks"))
    return True if (collection_path.name in FRAMEWORK_FOLDERS) != wanted else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under `-n 2 --dist loadgroup` a file's tests, which share what they trained, stay together; examples do not."""
    for item in items:
        if item.path.parent.name != "examples":
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(_TESTS).as_posix().replace("/", ".")))


@pytest.fixture(autouse=True)
def nothing_of_a_file_is_run() -> Iterator[None]:
    """No test may make safepoint run, import, unpickle or send anything on behalf of a file: see `tests/audit.py`."""
    del audit.violations[:]
    yield
    found = list(dict.fromkeys(audit.violations))
    assert not found, "\n".join(["done by safepoint, or by what it called:", *found[:20]])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs of files that nobody will need."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(params=["direct", "buffered"])
def direct_io(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs a test twice: with direct I/O where the file system takes it, and without. Forked children inherit it."""
    if request.param == "buffered":
        monkeypatch.setattr("safepoint.store.files._DIRECT", 0)
    return bool(request.param == "direct")


def _fail_a_skipped_framework_test(report: pytest.CollectReport | pytest.TestReport) -> None:
    folder = report.nodeid.partition("/")[2].partition("/")[0]
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail") and folder in FRAMEWORK_FOLDERS - _MAY_SKIP:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} skipped in CI, where every framework is installed: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    report = yield
    _fail_a_skipped_framework_test(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    report = yield
    _fail_a_skipped_framework_test(report)
    return report
