"""Having members repair what they hold, and whom to believe that does not answer."""

from __future__ import annotations

import pytest

from dstash.client.operations.scans import RepairOperation, StatusOperation
from dstash.errors import Unavailable
from tests.harness.joined import START, Joined


def ask(joined: Joined, kind: type[StatusOperation], timeout: int = 30_000) -> set[str]:
    """Ask every member; returns who answered."""
    return set(joined.run(kind(joined.session, joined.now + timeout, list("abc"))))


def test_who_repairs_is_told() -> None:
    joined = Joined()
    assert ask(joined, RepairOperation) == {"a", "b", "c"}
    assert all(core.scheduler.running("repair") for core in joined.peers.values())
    joined.down = {"b"}
    assert ask(joined, RepairOperation) == {"a", "c"}


def test_a_member_may_take_longer_to_begin_a_repair_than_to_say_how_it_does() -> None:
    joined = Joined()
    joined.silent = {"b"}
    for kind, patience in ((StatusOperation, 300), (RepairOperation, 5000)):
        began = joined.now
        assert ask(joined, kind) == {"a", "c"}
        assert joined.now - began == patience


@pytest.mark.parametrize("how", ["down", "silent", "not ready", "no time"])
def test_a_repair_that_nobody_begins_is_an_error(how: str) -> None:
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
