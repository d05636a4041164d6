"""Rules that are broken on purpose: random walks find what each of them prevents.

The seeds are those at which ``python -m tests.model`` found it first.
"""

from __future__ import annotations

import pytest

from tests.model.placements import SCENARIOS
from tests.model.walk import Walk

#: (scenario, broken rule, seed)
PLANTED = [
    ("stable", "promises_not_kept", 121),
    ("stable", "accepts_below_promise", 83),
    ("stable", "accepts_below_record", 9),
    ("stable", "promises_twice", 1557),
    ("stable", "merges_past_promise", 20),
    ("stable", "answers_without_agreement", 202),
    ("stable", "applies_twice", 36),
    ("stable", "collects_by_timer", 1),
    ("stable", "repeated_conflict_leaves_no_entry", 301),
    ("stable", "new_register_forgets_nothing", 1229),
    ("stable", "merges_during_agreement", 1009),
    ("amnesia", "amnesiac_votes", 101),
    ("replace1", "streams_nothing", 144),
]


@pytest.mark.parametrize(("scenario", "broken", "seed"), PLANTED)
def test_broken_rule_is_found(scenario: str, broken: str, seed: int) -> None:
    assert Walk(scenario, broken, seed).run()
    assert Walk(scenario, "", seed).run() == "", "the same walk with all rules"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_find_nothing_with_all_rules(scenario: str) -> None:
    assert [text for seed in range(1, 31) if (text := Walk(scenario, "", seed).run())] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_find_nothing_while_floors_are_lowered(scenario: str) -> None:
    walks = [Walk(scenario, "", seed, lowers=True) for seed in range(1, 31)]
    assert [text for walk in walks if (text := walk.run())] == []
