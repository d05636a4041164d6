"""The model with the proposers of peers in place of the modelled ones."""

from __future__ import annotations

import pytest

from tests.model.homes import HomesWalk, SealedWalk
from tests.model.placements import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_of_real_proposers_find_nothing(scenario: str) -> None:
    assert [text for seed in range(1, 41) if (text := HomesWalk(scenario, "", seed).run())] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_with_bars_in_place_of_promises_find_nothing(scenario: str) -> None:
    assert [text for seed in range(1, 41) if (text := SealedWalk(scenario, "", seed).run())] == []


@pytest.mark.parametrize(
    ("broken", "seed"),
    [("accepts_below_promise", 47), ("accepts_below_record", 2), ("promises_not_kept", 32)],
)
def test_broken_voter_is_found_with_real_proposers(broken: str, seed: int) -> None:
    assert HomesWalk("stable", broken, seed).run()
