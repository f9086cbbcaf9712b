"""The protocol of docs/design/0001 as a program small enough to visit every state that it can reach.

Actors take one step at a time, in any order, and may die before any of them: three savers (one of them a job that was
thought dead, which insists on its own last snapshot), two collectors, one who prunes and one who tags. A step is one
operation of a store, or one look at it; taking a lock and the first look under it are one (nobody can tell them from
two: what could come between would have found the lock taken). `Rules` says what is done right; turning one off must be
noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class Rules:
    """What the protocol does; each may be left out, to see that the model notices."""

    saver_locks: bool = True  # a save holds the shared lock from before it looks until it has committed
    saver_locks_first: bool = True  # ... and not only from when it has decided what to refer to: check, then claim
    collector_locks: bool = True
    create_only: bool = True  # a name that is taken is refused
    expects: bool = True  # who continues its own last snapshot gives up when it is no longer the newest
    pack_first: bool = True  # what a snapshot names is there before the snapshot is
    decides_again: bool = True  # who loses the number of a mark reads again
    spares_newest: bool = True


class Snap(NamedTuple):
    packs: frozenset[str]
    parent: int | None
    owner: str


class Mark(NamedTuple):
    k: int
    pruned: bool
    tagged: bool


class Actor(NamedTuple):
    """Where an actor is in its program, and what it knows."""

    kind: str
    at: str = "start"
    seen: int = -1  # the newest number, or the k, that it saw
    known: frozenset[str] = frozenset()  # packs that it refers to, or needs


class State(NamedTuple):
    packs: frozenset[str]
    snaps: tuple[Snap, ...]
    marks: tuple[Mark, ...]
    shared: frozenset[int]
    exclusive: int | None
    actors: tuple[Actor, ...]
    lost: str = ""  # what an operation destroyed, if it did


SAVERS = {"latest": None, "zombie": 1, "branch": 0}
"""Kind of saver → the snapshot that it continues: whatever is the newest, its own last one, an old one."""


def start() -> State:
    """Two snapshots with a pack each, of which each new one would use its parent's again."""
    snaps = (Snap(frozenset({"p0"}), None, "old"), Snap(frozenset({"p1"}), 0, "old"))
    marks = (Mark(-1, False, False), Mark(-1, False, False))
    kinds = (*SAVERS, "collector", "collector", "pruner", "tagger")
    return State(frozenset({"p0", "p1"}), snaps, marks, frozenset(), None, tuple(map(Actor, kinds)))


def following(state: State, rules: Rules) -> Iterator[State]:
    """Every state that one step of one actor leads to."""
    for index, actor in enumerate(state.actors):
        if actor.at in {"done", "told"}:
            continue
        yield put(release(state, index), index, actor._replace(at="dead"))
        if actor.kind in SAVERS:
            yield from save(state, index, actor, rules)
        elif actor.kind == "collector":
            yield from collect(state, index, actor, rules)
        else:
            yield from decide(state, index, actor, rules)


def put(state: State, index: int, actor: Actor) -> State:
    if actor.at in {"done", "dead"}:  # whatever it knew, nobody will ever ask
        actor = Actor(actor.kind, "done")
    return state._replace(actors=(*state.actors[:index], actor, *state.actors[index + 1 :]))


def release(state: State, index: int) -> State:
    exclusive = None if state.exclusive == index else state.exclusive
    return state._replace(shared=state.shared - {index}, exclusive=exclusive)


def lock(state: State, index: int) -> State | None:
    return None if state.exclusive is not None else state._replace(shared=state.shared | {index})


def save(state: State, index: int, actor: Actor, rules: Rules) -> Iterator[State]:
    own = f"n{index}"
    order = ["lock", "look", "pack", "snapshot"] if rules.saver_locks_first else ["look", "lock", "pack", "snapshot"]
    if not rules.saver_locks:
        order.remove("lock")
    if not rules.pack_first:
        order[order.index("pack") :] = ["snapshot", "pack"]
    at = order[0] if actor.at == "start" else actor.at
    after = order[order.index(at) + 1] if at != order[-1] else "done"
    if at == "lock":
        locked = lock(state, index)
        if locked is not None and after == "look":
            yield from save(locked, index, actor._replace(at=after), rules)
        elif locked is not None:
            yield put(locked, index, actor._replace(at=after))
    elif at == "look":
        newest = len(state.snaps) - 1
        parent = newest if SAVERS[actor.kind] is None else SAVERS[actor.kind]
        assert parent is not None
        reused = state.snaps[parent].packs & state.packs  # its pack is there, in its full length
        yield put(state, index, actor._replace(at=after, seen=newest, known=frozenset(sorted(reused)[:1])))
    elif at == "pack":
        done = put(state._replace(packs=state.packs | {own}), index, actor._replace(at=after))
        yield release(done, index) if after == "done" else done
    else:
        yield from commit(state, index, actor, after, rules)


def commit(state: State, index: int, actor: Actor, after: str, rules: Rules) -> Iterator[State]:
    """Create the file of the number after the newest one that was seen."""
    newest = len(state.snaps) - 1
    insists = actor.kind == "zombie" and rules.expects
    if insists and newest != SAVERS["zombie"]:
        yield release(put(state, index, actor._replace(at="done")), index)  # ConflictError
        return
    parent = actor.seen if SAVERS[actor.kind] is None else SAVERS[actor.kind]
    snap = Snap(actor.known | {f"n{index}"}, parent, actor.kind)
    number = actor.seen + 1
    if number <= newest:
        if rules.create_only:
            yield put(state, index, actor._replace(seen=newest))  # taken: look again
            return
        snaps = (*state.snaps[:number], snap, *state.snaps[number + 1 :])
        state = state._replace(lost=f"snapshot {number}")
    else:
        snaps = (*state.snaps, snap)
        state = state._replace(marks=(*state.marks, Mark(-1, False, False)))
    done = put(state._replace(snaps=snaps), index, actor._replace(at=after))
    yield release(done, index) if after == "done" else done


def collect(state: State, index: int, actor: Actor, rules: Rules) -> Iterator[State]:
    if actor.at == "start":
        if not rules.collector_locks:
            yield put(state, index, actor._replace(at="read"))
        elif state.exclusive is None and not state.shared:
            yield from collect(state._replace(exclusive=index), index, actor._replace(at="read"), rules)
        else:
            yield put(state, index, actor._replace(at="done"))  # busy: another time
    elif actor.at == "read":
        there = [snap for snap, mark in zip(state.snaps, state.marks, strict=True) if not mark.pruned]
        needed = frozenset[str]().union(*(snap.packs for snap in there))
        yield put(state, index, actor._replace(at="delete", known=state.packs - needed))
    elif actor.known:
        doomed = min(actor.known)
        yield put(state._replace(packs=state.packs - {doomed}), index, actor._replace(known=actor.known - {doomed}))
    else:
        yield put(release(state, index), index, actor._replace(at="done"))


def decide(state: State, index: int, actor: Actor, rules: Rules) -> Iterator[State]:
    """Prune or tag snapshot 0: read its newest mark, decide, create the next one."""
    mark = state.marks[0]
    if actor.at == "start":
        locked = lock(state, index)
        if locked is not None:
            yield from decide(locked, index, actor._replace(at="read"), rules)
    elif actor.at == "read":
        newest = rules.spares_newest and len(state.snaps) == 1
        refused = mark.tagged or newest if actor.kind == "pruner" else mark.pruned
        if refused:
            yield put(release(state, index), index, actor._replace(at="done"))
        else:
            yield put(state, index, actor._replace(at="create", seen=mark.k))
    elif actor.seen == mark.k or not rules.decides_again:
        new = Mark(actor.seen + 1, actor.kind == "pruner", actor.kind == "tagger")
        told = state._replace(marks=(new, *state.marks[1:]))
        yield put(release(told, index), index, actor._replace(at="told"))
    else:
        yield from decide(state, index, actor._replace(at="read"), rules)


def wrong(state: State) -> str | None:
    """What must never be, and is; None if all is well."""
    if state.lost:
        return f"{state.lost} was overwritten"
    for number, (snap, mark) in enumerate(zip(state.snaps, state.marks, strict=True)):
        if not mark.pruned and not snap.packs <= state.packs:
            return f"snapshot {number} misses {sorted(snap.packs - state.packs)}"
        if snap.owner == "zombie" and snap.parent != number - 1:
            return f"snapshot {number} was mixed into another's history"
    if any(a.kind == "tagger" and a.at == "told" for a in state.actors) and not state.marks[0].tagged:
        return "a tag that was given is gone"
    return None


def explore(rules: Rules) -> tuple[int, str | None]:
    """Visit every state; returns how many there are, and the first thing that is wrong."""
    first = start()
    seen = {first}
    pending = [first]
    while pending:
        state = pending.pop()
        for new in following(state, rules):
            if new not in seen:
                seen.add(new)
                if (problem := wrong(new)) is not None:
                    return len(seen), problem
                pending.append(new)
    return len(seen), None


def without(rule: str) -> Rules:
    """The protocol without one of its rules."""
    return replace(Rules(), **{rule: False})
