"""The model with the proposers of peers in place of the modelled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from dstash.peer.registers.attempt import Attempt, Shown
from dstash.peer.registers.plan import Plan
from dstash.peer.registers.proposer import Proposer, Tenure, Time
from dstash.peer.registers.quorum import Voters
from dstash.version import Version
from tests.model.homes import ClockedWalk, CorruptWalk, HomesWalk, SealedWalk
from tests.model.placements import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_of_real_proposers_find_nothing(scenario: str) -> None:
    assert [text for seed in range(1, 31) if (text := HomesWalk(scenario, "", seed).run())] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_in_which_registers_rest_while_they_move_find_nothing(scenario: str) -> None:
    assert [text for seed in range(1, 31) if (text := SealedWalk(scenario, "", seed).run())] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_walks_with_clocks_that_are_set_find_nothing(scenario: str) -> None:
    assert [text for seed in range(1, 31) if (text := ClockedWalk(scenario, "", seed).run())] == []


def test_walks_with_corrupt_records_find_nothing() -> None:
    assert [text for seed in range(1, 41) if (text := CorruptWalk("stable", "", seed).run())] == []


@pytest.mark.parametrize(
    ("broken", "seed"),
    [("accepts_below_promise", 47), ("accepts_below_record", 2), ("promises_not_kept", 32)],
)
def test_broken_voter_is_found_with_real_proposers(broken: str, seed: int) -> None:
    assert HomesWalk("stable", broken, seed).run()


def _covers_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer with a check that was sent before the operation arrived (P3)."""
    begin = Attempt.__post_init__

    def cover(attempt: Attempt) -> None:
        begin(attempt)
        attempt.covers = 1 << 30

    monkeypatch.setattr(Attempt, "__post_init__", cover)


def _lowest_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a round from the lowest answer (P1)."""
    monkeypatch.setattr(Shown, "highest", property(lambda shown: min(shown.held.values())))


def _steps_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emit a step of a lost round again, with other content (P2)."""
    accept, lose = Proposer._accept, Proposer._lose

    def emit(proposer: Proposer, tenure: Tenure, planned: Plan, time: Time) -> Attempt:
        ballot = tenure.ballot
        attempt = accept(proposer, tenure, planned, time)
        tenure.ballot = ballot
        return attempt

    def keep(proposer: Proposer, attempt: Attempt, time: Time) -> None:
        tenure = proposer.tenure
        lose(proposer, attempt, time)
        proposer.tenure = tenure

    monkeypatch.setattr(Proposer, "_accept", emit)
    monkeypatch.setattr(Proposer, "_lose", keep)


def _no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer with what a single voter has shown (P3)."""

    def agreed(attempt: Attempt, shown: Shown, others: Iterable[str] = ()) -> Version | None:
        has_quorum = attempt.voters.is_quorum([*shown.held, *others])
        return shown.highest if has_quorum else None

    monkeypatch.setattr(Attempt, "agreed", agreed)


def _blind_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a round although too few voters know what they hold (P1, V4)."""
    monkeypatch.setattr(Voters, "have_all", lambda voters, names: True)


@pytest.mark.parametrize(
    ("break_rule", "walk", "seed"),
    [
        (_covers_all, HomesWalk, 16),
        (_lowest_base, HomesWalk, 15),
        (_steps_reused, HomesWalk, 17),
        (_no_agreement, HomesWalk, 123),
        (_blind_counts, CorruptWalk, 1),
    ],
)
def test_broken_proposer_is_found(
    monkeypatch: pytest.MonkeyPatch,
    break_rule: Callable[[pytest.MonkeyPatch], None],
    walk: type[HomesWalk],
    seed: int,
) -> None:
    break_rule(monkeypatch)
    assert walk("stable", "", seed).run()
