"""Every state of the commit, mark and collection protocol is safe; without any one of its rules, one is not."""

from __future__ import annotations

import pytest
from tests.repository.protocol_model import Rules, explore, without


def test_no_reachable_state_loses_anything() -> None:
    num_states, problem = explore(Rules())
    assert problem is None
    assert num_states > 20_000


@pytest.mark.parametrize(
    "rule, found",
    [
        ("saver_locks", "misses"),
        ("saver_locks_first", "misses"),  # check, then claim
        ("collector_locks", "misses"),
        ("create_only", "overwritten"),
        ("expects", "mixed into"),
        ("pack_first", "misses"),
        ("decides_again", "tag that was given is gone"),
    ],
)
def test_without_a_rule_something_is_lost(rule: str, found: str) -> None:
    _, problem = explore(without(rule))
    assert problem is not None
    assert found in problem
