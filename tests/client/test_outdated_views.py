"""Clients whose view has too few replicas to ask: they learn the next view without an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.reads import LookupOperation
from dstash.client.session import PROBE_MS
from dstash.types import Level
from tests.harness.joined import TYPES, Joined

Read = Callable[[Joined], Any]


@pytest.fixture
def joined() -> Joined:
    """Peers that have their data again; the client knows only that they have lost it."""
    joined = Joined("abc")
    joined.put({"k": 1})
    whole = joined.topology
    lost = tuple(replace(member, synced=False) for member in whole.members)
    epoch = whole.epoch + 1
    joined.session.install(replace(whole, epoch=epoch, members=lost).encode(), list("abc"))
    joined.install(replace(whole, epoch=epoch + 1))
    return joined


@pytest.mark.parametrize(
    "read",
    [
        lambda joined: joined.lookup("k"),
        lambda joined: joined.lookup("k", level="one"),
        lambda joined: joined.lookup("k", level="all"),
        lambda joined: joined.scan(level="one"),
        lambda joined: joined.scan(level="quorum"),
    ],
)
def test_reads_without_a_replica_to_ask_learn_the_view(joined: Joined, read: Read) -> None:
    began = joined.now
    assert read(joined) == {"k": 1}
    assert joined.now - began < PROBE_MS


def test_view_is_requested_at_intervals_and_from_each_member(joined: Joined) -> None:
    session, now = joined.session, joined.now
    asked = [session.view_request(now + PROBE_MS * step) for step in range(3)]
    assert sorted(send.peer for [send] in asked) == ["a", "b", "c"]
    assert session.view_request(now + PROBE_MS * 3 - 1) == []


def test_view_is_requested_after_the_clock_was_set_back(joined: Joined) -> None:
    assert joined.session.view_request(joined.now)
    assert joined.session.view_request(joined.now - 3_600_000)


def test_calls_that_wait_for_an_answer_request_no_view(joined: Joined) -> None:
    epoch = joined.topology.epoch + 2
    joined.session.install(replace(joined.topology, epoch=epoch).encode(), list("abc"))
    deadline, decode = joined.now + 5000, TYPES.decode_values
    lookup = LookupOperation(joined.session, deadline, "i", ["k"], Level.QUORUM, decode)
    assert len(lookup.more(joined.now)) == 2
    assert lookup.tick(joined.now + 1) == []
