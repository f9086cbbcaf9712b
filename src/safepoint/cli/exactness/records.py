"""What a run tells: one line of JSON for each resume and each save, written before anything else can happen.

Invariant: a line is whole or it is not there; digests are equal exactly where the bits are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, final

import msgspec


@final
class Variable(msgspec.Struct, frozen=True, array_like=True):
    """A variable of the script that no manager tracks.

    Attributes:
        kind: "generator", "state", "array", "data" or "value": what it may do to a run.
        type: the name of its class.
        digest: of its content; empty where it has none that can be read ("data").
    """

    kind: str
    type: str
    digest: str


@final
class Moment(msgspec.Struct, frozen=True):
    """A resume that is over, or a call of `save`.

    Attributes:
        event: which of them.
        run: which of the script's managers: the first is 0.
        path: of its directory, as the script gave it, absolute.
        step: that is finished; -1 where a resume found nothing.
        saved: whether a policy was due.
        seconds: since the process began.
        metrics: name → value, exactly.
        leaves: name → digest, of all that is tracked.
        random: framework → digest of its global random state, tracked or not.
        tracks_random: whether the manager saves random state.
        variables: `function:name` → what the script holds beside it.
    """

    event: Literal["resume", "save"]
    run: int
    path: str
    step: int
    saved: bool
    seconds: float
    metrics: dict[str, str]
    leaves: dict[str, str]
    random: dict[str, str]
    tracks_random: bool
    variables: dict[str, Variable]


@final
class Kill(msgspec.Struct, frozen=True):
    """When a run is to die.

    Attributes:
        step: at the first `save` of this step or a later one.
        before: before that save begins; else after it returned, so its commit may be on its way.
        delay_seconds: how long after.
    """

    step: int
    before: bool
    delay_seconds: float


@final
class Plan(msgspec.Struct, frozen=True):
    """What a child process is told.

    Attributes:
        files: the folder that stands for the file system: repositories and models are written there.
        records: the file that takes its moments.
        kill: when to die, if at all.
    """

    files: str
    records: str
    kill: Kill | None = None


def read_moments(path: Path) -> list[Moment]:
    """The moments in a file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [msgspec.json.decode(line, type=Moment) for line in lines]
