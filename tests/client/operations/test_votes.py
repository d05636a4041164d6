"""Votes on a write chunk: which items are settled, and which replicas may still store them."""

from __future__ import annotations

import pytest

from dstash.client.operations.votes import Votes
from dstash.client.routing import WriteSet
from dstash.errors import BelowFloor, Busy, CorruptRecord, DiskFull, LimitError
from dstash.types import Level

ABC = ("a", "b", "c")
TARGETS = WriteSet(ABC, ABC, ABC, frozenset(ABC))


@pytest.fixture
def votes() -> Votes:
    return Votes(TARGETS, Level.QUORUM, 3)


def test_level_is_met_by_a_quorum_of_acks(votes: Votes) -> None:
    assert not votes.is_met({"a"})
    assert votes.is_met({"a", "c"})


def test_replicas_wait_until_they_ack_or_fail(votes: Votes) -> None:
    assert votes.waiting() == ["a", "b", "c"]
    votes.acks.add("b")
    votes.failed["c"] = Busy("later")
    assert votes.waiting() == ["a"]


def test_groups_are_of_items_that_are_not_settled(votes: Votes) -> None:
    votes.refusals.add(1, "b", DiskFull("no room"))
    votes.settle([0])
    assert sorted(votes.groups(), key=lambda group: group[1]) == [
        (frozenset("b"), [1]),
        (frozenset(), [2]),
    ]
    assert votes.unsettled("xyz") == ["y", "z"]
    assert votes.left == 2


def test_items_are_all_unsettled_at_first(votes: Votes) -> None:
    items = ("x", "y", "z")
    assert votes.unsettled(items) is items


@pytest.mark.parametrize(
    ("error", "may_store"),
    [
        (Busy("later"), True),
        (CorruptRecord("bad"), True),
        (DiskFull("no room"), False),
        (LimitError("too long"), False),
    ],
)
def test_replica_that_refused_may_store_an_item_later(
    votes: Votes, error: Exception, may_store: bool
) -> None:
    votes.refusals.add(0, "a", error)  # type: ignore[arg-type]
    assert votes.may_store_later(0) == ({"a"} if may_store else set())
    assert votes.has_retryable() == may_store


def test_replica_that_failed_may_store_every_item_later(votes: Votes) -> None:
    votes.failed["c"] = Busy("later")
    votes.refusals.add(0, "b", BelowFloor("old"))
    assert votes.may_store_later(0) == votes.may_store_later(2) == {"c"}
