"""How hard the torture is, where its numbers go, and how a failure is run again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.torture.report import Report, Row, Torture, write_report

from safepoint.repository import commit

_report = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    handed_on = getattr(config, "workerinput", {}).get("torture seed", 0)
    config.option.seed = handed_on or config.option.seed or random.randrange(1, 1 << 32)
    config.stash[_report] = Report(seed=config.option.seed, scale=config.option.scale)
    config.pluginmanager.register(Gather(config.stash[_report]), "torture")


class Gather:
    """Brings the lines of all processes together; a page is written by the one that started them."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Of pytest-xdist: its processes throw the same dice."""
        node.workerinput["torture seed"] = self.report.seed

    def pytest_report_header(self) -> str:
        return f"torture: --seed {self.report.seed} --scale {self.report.scale:g}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.report.rows += [Row(**value) for key, value in report.user_properties if key == "torture"]
            self.report.notes += [str(value) for key, value in report.user_properties if key == "torture note"]
        if report.failed:
            self.report.failed = True
            self.report.notes.append(f"**failed**: `{report.nodeid}`")
        if report.skipped:
            self.report.notes.append(f"skipped: `{report.nodeid}`: {report.longrepr[-1]}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        folder = session.config.getoption("--report")
        if folder and self.report.rows and not hasattr(session.config, "workerinput"):
            self.report.cut_short = exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
            write_report(self.report, Path(folder))


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> Iterator[Torture]:
    """The budget and the dice of one harness; a failure prints how to throw them again."""
    report = request.config.stash[_report]
    replay = f"pytest {request.node.nodeid} --seed {report.seed} --scale {report.scale:g}"
    request.node.add_report_section("setup", "replay", replay)
    torture = Torture(report, random.Random(f"{report.seed}/{request.node.name}"), replay)
    started = time.monotonic()
    yield torture
    for row in torture.rows:
        row.seconds = (time.monotonic() - started) / len(torture.rows)
        request.node.user_properties.append(("torture", asdict(row)))
    request.node.user_properties.extend(("torture note", note) for note in torture.notes)


@pytest.fixture
def without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is broken on purpose: a store is not tried out where a repository begins, which would find it out."""
    monkeypatch.setattr(commit, "probe", lambda store, data: None)
