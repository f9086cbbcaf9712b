"""How much memory may be taken, by what `/proc` and control groups of both versions say."""

from __future__ import annotations

from pathlib import Path

import pytest

from safepoint.store import room, spare_memory


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:    4000 kB\nBuffers: 1 kB\n"}
AVAILABLE = 4000 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"proc/meminfo": "MemTotal: 9 kB\n", "proc/self/cgroup": "0::/\n"}, 0),
        ({**MACHINE, "proc/self/cgroup": "0::/\n"}, AVAILABLE),
        ({**MACHINE, "proc/self/cgroup": "0::/a/b\n", "group/a/b/memory.max": "max\n"}, AVAILABLE),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/a/b\n",
                "group/a/memory.max": "1000\n",
                "group/a/memory.current": "700\n",
                "group/a/memory.stat": "anon 5\ninactive_file 200\nactive_file 7\n",
            },
            500,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/on/the/machine\n",  # what a container sees is its own, at the root
                "group/memory.max": "1000\n",
                "group/memory.current": "1700\n",
                "group/memory.stat": "inactive_file 0\n",
            },
            0,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n0::/\n",
                "group/memory/x/memory.limit_in_bytes": "3000\n",
                "group/memory/x/memory.usage_in_bytes": "1000\n",
                "group/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 10\n",
                "group/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "group/memory/memory.usage_in_bytes": "1000\n",
                "group/memory/memory.stat": "total_inactive_file 0\n",
            },
            2010,
        ),
        ({**MACHINE, "proc/self/cgroup": "0::/\n", "group/memory.max": "1000\n"}, 0),
        ({**MACHINE, "proc/self/cgroup": "nonsense\n"}, 0),
    ],
)
def test_what_there_is(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, files)
    monkeypatch.setattr(room, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "_GROUPS", tmp_path / "group")
    assert spare_memory() == expected


def test_of_this_machine() -> None:
    assert 0 <= spare_memory() < 1 << 50
