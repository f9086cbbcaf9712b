"""How much memory may be taken: what the machine has to spare, and what the containers that this runs in allow.

Source: `MemAvailable` of proc(5); control groups, https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# (limit, what counts towards it, what of that goes when it is needed)
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def spare_memory() -> int:
    """Bytes that can be taken without anything being swapped out or killed; 0 where the system does not tell."""
    try:
        found = [1024 * _number(_PROC / "meminfo", "MemAvailable:")]
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                found += _left(_GROUPS / "memory", path, _VERSION_1)
            elif not controllers:
                found += _left(_GROUPS, path, _VERSION_2)
    except (OSError, ValueError):
        return 0
    return max(0, min(found))


def _left(root: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    """What the limits of a control group, and of those around it, leave."""
    limit, usage, cache = names
    group = Path(path)
    found = []
    for place in (group, *group.parents):
        folder = root / place.relative_to("/")
        # In a container the path may be that of the machine, whose folders are not seen: its own is the root's.
        text = (folder / limit).read_text().strip() if (folder / limit).exists() else "max"
        if text != "max":
            found.append(int(text) - _number(folder / usage, "") + _number(folder / "memory.stat", f"{cache} "))
    return found


def _number(file: Path, key: str) -> int:
    """The number behind a word at the beginning of a line.

    Raises:
        ValueError: there is none.
    """
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return int(line.removeprefix(key).split()[0])
    raise ValueError(f"no {key} in {file}")
