"""The log lines about members, quorums and topology changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs

from dstash import events
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.peer.supervision.cluster_events import ClusterEvents

MINUTE = 60_000


def topology(names: str = "abc", replicas: int = 3) -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", f"z{name}") for name in names)
    return Topology("c", "id", 5, replicas, formed=True, members=members, min_peers=1)


class Watched:
    """The events of peer ``a``, and what they have logged."""

    def __init__(self) -> None:
        self.events = ClusterEvents("a")
        self.now = 0

    def see(self, alive: str, cluster: Topology | None = None, ms: int = 1000) -> list[Any]:
        """Return the lines after a new view, some time later."""
        self.now += ms
        view = View(cluster or topology(), frozenset(alive))
        with capture_logs() as logs:
            self.events.watch(view, self.now)
            self.events.watch(view, self.now)
        return [dict(line) for line in logs]


def test_member_down_and_back_are_logged_once_with_its_name() -> None:
    watched = Watched()
    assert watched.see("abc") == []
    (line,) = watched.see("ac")
    assert line == {
        "event": events.MEMBER_DOWN,
        "log_level": "warning",
        "member": "b",
        "zone": "zb",
        "address": "tcp://b:1",
        "down": 1,
        "members": 3,
    }
    assert watched.see("ac") == []
    (line,) = watched.see("abc", ms=7000)
    assert (line["event"], line["member"], line["away_s"]) == (events.MEMBER_BACK, "b", 8)


def test_member_that_is_removed_is_not_logged_as_back() -> None:
    watched = Watched()
    watched.see("abc")
    watched.see("ab")
    assert watched.see("ab", topology("ab")) == []


def test_lines_about_a_member_that_comes_and_goes_are_limited() -> None:
    watched = Watched()
    lines = [line for _ in range(20) for alive in ("ac", "abc") for line in watched.see(alive)]
    assert [line["event"] for line in lines] == [events.MEMBER_DOWN, events.MEMBER_BACK] * 2
    assert watched.see("ac") == []
    (line,) = watched.see("ac", ms=MINUTE)  # what was held back and still holds
    assert (line["event"], line["member"]) == (events.MEMBER_DOWN, "b")


def test_quorum_lost_and_regained_count_partitions() -> None:
    watched = Watched()
    assert watched.see("abc") == []
    assert events.QUORUM_LOST not in [line["event"] for line in watched.see("ab")]
    *_, line = watched.see("a")
    assert line == {
        "event": events.QUORUM_LOST,
        "log_level": "error",
        "partitions": PARTITIONS,
        "without_quorum": PARTITIONS,
        "of": PARTITIONS,
        "down": ["b", "c"],
    }
    *_, line = watched.see("ac")
    assert (line["event"], line["partitions"]) == (events.QUORUM_REGAINED, PARTITIONS)
    assert line["without_quorum"] == 0


def test_lost_quorum_is_counted_and_unsynced_store_does_not_vote() -> None:
    cluster = topology("abcde")
    watched = Watched()
    watched.see("abcde", cluster)
    *_, line = watched.see("abc", cluster)
    lost = sum(len({"d", "e"} & set(owners)) == 2 for owners in View(cluster).readers)
    assert 0 < lost < PARTITIONS
    assert (line["partitions"], line["without_quorum"]) == (lost, lost)
    members = tuple(replace(member, synced=member.id != "c") for member in cluster.members)
    *_, line = watched.see("abc", replace(cluster, members=members))
    assert line["event"] == events.QUORUM_LOST
    assert line["without_quorum"] == line["partitions"] + lost


def test_cluster_that_forms_has_no_quorum_to_lose() -> None:
    watched = Watched()
    assert watched.see("a", replace(topology(), formed=False), ms=1)[0]["event"] == (
        events.MEMBER_DOWN
    )
    assert all(
        line["event"] == events.MEMBER_DOWN
        for line in watched.see("a", replace(topology(), formed=False))
    )


def test_topology_change_that_waits_is_logged_with_the_reason_and_its_end() -> None:
    before = topology("abcd")
    joining = tuple(
        replace(member, state=State.JOINING if member.id == "d" else State.ACTIVE)
        for member in before.members
    )
    change = replace(before, members=joining, change=Change(6))
    watched = Watched()
    watched.see("abcd", change)
    down = watched.see("abc", change, ms=5000)
    assert [line["event"] for line in down] == [events.MEMBER_DOWN]
    assert watched.see("abc", change, ms=5000) == []
    (line,) = watched.see("abc", change, ms=5000)
    assert line["event"] == events.CHANGE_WAITS
    assert "d gains" in line["why"]
    assert "dstash cluster force-remove d" in line["why"]
    assert watched.see("abc", change, ms=5000) == []
    back, line = watched.see("abcd", change, ms=5000)
    assert back["event"] == events.MEMBER_BACK
    assert line["event"] == events.CHANGE_CONTINUES
