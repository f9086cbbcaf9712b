"""What is wrong with how a script resumes, in words that tell what to do."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from safepoint.cli.exactness.compare import Difference, Reference
from safepoint.cli.exactness.records import Variable
from safepoint.cli.exactness.runs import Process
from safepoint.cli.text import count

_MOST = 3
_NAMES = {
    "python": "Python's",
    "numpy": "NumPy's",
    "torch": "PyTorch's",
    "tensorflow": "TensorFlow's",
    "keras": "Keras'",
    "jax": "JAX's",
}


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change.

    Attributes:
        kind: for programs.
        name: of what it is about: a variable, a leaf, a metric, or empty.
        step: that was finished, or None.
        message: what is so.
        hint: what to do.
    """

    kind: str
    name: str
    step: int | None
    message: str
    hint: str


def nothing_saved(alone: Process) -> Finding | None:
    """Whether the uninterrupted run has nothing to resume from."""
    if any(moment.saved for moment in alone.saves):
        return None
    if alone.saves:
        return Finding(
            "saved_nothing",
            "",
            None,
            f"the script saved nothing: it called save {count(len(alone.saves), 'time')}, and no policy was ever due",
            "let save= be due sooner, or train for longer",
        )
    return Finding(
        "saved_nothing",
        "",
        None,
        "the script saved nothing",
        "save in its loop: CheckpointManager(checkpoint, directory).save(...), or KerasCheckpoint in model.fit",
    )


def not_resuming(alone: Process, chain: Sequence[Process]) -> Finding | None:
    """The first process that does not go on where the one before it was killed."""
    reference = Reference(alone.moments)
    for number, process in enumerate(chain):
        is_last = number == len(chain) - 1
        if number:
            found = _begins_wrongly(reference, chain[number - 1], process)
            if found is not None:
                return found
        if process.code not in {0, -signal.SIGKILL}:
            return _failed(process, chain[number - 1].newest.get(0, -1) if number else None)
        if is_last and process.code == 0 and process.saves and process.saves[-1].step != alone.saves[-1].step:
            step = process.saves[-1].step
            message = f"the resumed run went to step {step}, the uninterrupted one to step {alone.saves[-1].step}"
            return Finding("steps", "", step, message, "let the total count steps of the whole run, not of one process")
    return None


def causes(difference: Difference) -> list[Finding]:
    """What made the runs differ: the most probable first, named where it can be."""
    if difference.after is None:
        return _not_reproducible(difference)
    found = [_random_lost(difference, name) for name in difference.random]
    found += [_untracked(difference, *item) for item in list(difference.variables.items())[:_MOST]]
    first = next(iter(difference.names))
    if not first.startswith("random/") and difference.at_resume:
        message = f"{first} is not what was saved, right after resuming at step {difference.after}"
        hint = "its load_state_dict() must take back all that its state_dict() gave, and nothing after it may change it"
        return [Finding("not_restored", first, difference.after, message, hint)]
    strong = [f for f in found if f.kind == "random" or difference.variables[f.name].kind in {"generator", "state"}]
    if not strong:
        found += [_data_lost(name, variable) for name, variable in list(difference.data.items())[:_MOST]]
        found += [_random_changed(difference, name) for name in difference.random_later]
    return found or [_unexplained(difference)]


def _begins_wrongly(reference: Reference, before: Process, process: Process) -> Finding | None:
    runs = {moment.run: moment.path for moment in before.moments}
    for run, path in runs.items():
        newest = before.newest.get(run, -1)
        first = next((moment for moment in process.moments if moment.run == run), None)
        if newest < 0 or first is None:
            continue
        if first.path != path:
            message = f"the script does not resume: its second run saved to {first.path}, its first to {path}"
            return Finding("not_resuming", first.path, None, message, "use the same directory in every run")
        if first.event == "save" or first.step < 0:
            message = f"the script does not resume: its second run began at step 0, though step {newest} had been saved"
            hint = "for step in manager.steps(total): ..., or start = manager.resume() before the loop, without fresh="
            return Finding("not_resuming", path, 0, message, hint)
        saves = [moment for moment in process.saves if moment.run == run]
        expected = reference.next_step(run, first.step)
        if saves and expected is not None and saves[0].step != expected:
            message = f"after resuming at step {first.step} the next save is of step {saves[0].step}, not {expected}"
            hint = "resume() returns the step to do next: for step in range(manager.resume(), total)"
            return Finding("steps", "", saves[0].step, message, hint)
    return None


def _failed(process: Process, newest: int | None) -> Finding:
    words = process.last_words()
    if "has snapshots of another run" in words:
        message = f"the script does not resume: it calls save() without resume(), though step {newest} had been saved"
        return Finding("not_resuming", "", 0, message, "for step in manager.steps(total): ..., or manager.resume()")
    when = "before it was killed" if newest is None else f"when it was started again after step {newest} was saved"
    last = words.splitlines()[-1] if words else "not a word"
    hint = f"all it said is in {process.log}"
    return Finding("failed", "", newest, f"the script failed {when}, with exit code {process.code}: {last}", hint)


def _not_reproducible(difference: Difference) -> list[Finding]:
    first = next(iter(difference.names))
    message = f"two runs of this script differ before any kill: {first} at step {difference.step}"
    timed = "seconds" in first or "time" in first
    found = [
        Finding(
            "not_reproducible",
            first,
            difference.step,
            message,
            f"leave it out: --ignore '{first}'"
            if timed
            else "seed every generator; let no order of data depend on time, and use deterministic operations",
        )
    ]
    for name in difference.random:
        text = f"{_NAMES.get(name, name)} random state was another from the beginning, and numbers are drawn from it"
        found.append(Finding("not_seeded", f"random/{name}", difference.step, text, "seed it at the top of the script"))
    for name, variable in list(difference.variables.items())[:_MOST]:
        text = f"{_called(name)} ({variable.type}) was another in the second run"
        hint = "make it from a fixed seed, not from the time, a process id or an unseeded generator"
        found.append(Finding("not_seeded", name, difference.step, text, hint))
    return found


def _random_lost(difference: Difference, name: str) -> Finding:
    whose = f"{_NAMES.get(name, name)} random state"
    after = f"after resuming at step {difference.after} it differs"
    if difference.tracks_random:
        message, hint = (
            f"{whose} is tracked, and yet {after}",
            "do not seed after resuming; import frameworks before it",
        )
    else:
        message = f"{whose} is not tracked: {after}"
        hint = "CheckpointManager(random=True), or draw from a generator of your own and track it: Checkpoint(rng=rng)"
    return Finding("random", f"random/{name}", difference.after, message, hint)


def _random_changed(difference: Difference, name: str) -> Finding:
    message = (
        f"{_NAMES.get(name, name)} random state was equal after resuming at step {difference.after} and differs at "
        f"step {difference.step}: something seeds it, or draws from it, only in a resumed run"
    )
    return Finding("random", f"random/{name}", difference.step, message, "seed before resuming, not after it")


def _untracked(difference: Difference, name: str, variable: Variable) -> Finding:
    short = name.rpartition(":")[2].rpartition(".")[2]
    message = f"{_called(name)} ({variable.type}) is not tracked: after resuming at step {difference.after} it differs"
    plain = variable.kind == "value"
    tracked = f'state={{"{short}": {short}}}' if plain else f"{short}={short}"
    return Finding("untracked", name, difference.after, message, f"track it: Checkpoint(..., {tracked})")


def _data_lost(name: str, variable: Variable) -> Finding:
    short = name.rpartition(":")[2]
    message = f"{_called(name)} ({variable.type}) is not tracked: a resumed run reads it from its beginning"
    return Finding("untracked", name, None, message, f"wrap it and track that: {short} = safepoint.Resumable({short})")


def _unexplained(difference: Difference) -> Finding:
    first = next(iter(difference.names))
    what = "changes the loss" if first.startswith("metrics/") else f"changes {first}"
    message = (
        f"{first} differs first at step {difference.step} while all tracked state was equal at step "
        f"{difference.after}: something that is not tracked {what}"
    )
    hint = "the order of data? a generator of your own? a counter? Track it: Checkpoint(..., name=object)"
    return Finding("unexplained", first, difference.step, message, hint)


def _called(name: str) -> str:
    function, _, variable = name.rpartition(":")
    return f"{variable} in {function}()" if function else variable
