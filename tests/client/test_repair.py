"""Tests of the full repair that a client starts."""

from __future__ import annotations

import pytest

from dstash.client.operations.scans import RepairOperation, StatusOperation
from dstash.errors import Unavailable
from tests.harness.joined import START, Joined


def ask(joined: Joined, kind: type[StatusOperation], timeout: int = 30_000) -> set[str]:
    """Ask every member; return those that answered."""
    return set(joined.run(kind(joined.session, joined.now + timeout, list("abc"))))


def test_repair_returns_the_members_that_started_it() -> None:
    joined = Joined()
    assert ask(joined, RepairOperation) == {"a", "b", "c"}
    assert all(core.scheduler.running("repair") for core in joined.peers.values())
    joined.down = {"b"}
    assert ask(joined, RepairOperation) == {"a", "c"}


def test_repair_waits_longer_for_members_than_status() -> None:
    joined = Joined()
    joined.silent = {"b"}
    for kind, timeout in ((StatusOperation, 300), (RepairOperation, 5000)):
        began = joined.now
        assert ask(joined, kind) == {"a", "c"}
        assert joined.now - began == timeout


@pytest.mark.parametrize("how", ["down", "silent", "not ready", "no time"])
def test_repair_started_by_no_member_raises_unavailable(how: str) -> None:
    joined = Joined()
    if how == "down":
        joined.down = set("abc")
    elif how == "not ready":
        for core in joined.peers.values():
            core.health.not_ready = "it starts"
    else:
        joined.silent = set("abc")
    with pytest.raises(Unavailable):
        ask(joined, RepairOperation, 1000 if how == "no time" else 30_000)
    assert joined.now - START < 10_000
