"""Tests of the membership interface, run against each backend."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dstash.cluster.membership.interface import NOTHING, Membership, StoredTopology
from dstash.cluster.topology.topology import Member
from dstash.errors import MembershipError, PeerIdInUse
from tests.harness.membership import Actor, Place, announcement, topology
from tests.harness.waiting import PATIENCE, stays_true, wait_until

#: Seconds in which a backend notices that a process ended: 0 or 2, plus delays of a busy machine.
#: (The TTL of a session would take 10 to 20.)
DEATH = {"local": 5.0, "consul": 8.0}
#: A timeout that never passes (seconds).
LONG = 100.0

AWKWARD = ["a/b", "..", ".", "~", "pä er?#%2F", "a b", "x" * 200, "-rf", "\N{SNOWMAN}", 'q"\\']


class Site:
    """A new cluster in one backend; closes the memberships that it opened."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        self.place = place
        self._stack = stack

    def open(self) -> Membership:
        membership = self.place.open()
        self._stack.callback(membership.close)
        return membership

    def actor(self) -> Actor:
        actor = Actor(self.place)
        self._stack.callback(actor.close)
        return actor


@pytest.fixture(params=["local", "consul"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    where = str(tmp_path)
    if request.param == "consul":
        where = request.getfixturevalue("consul_agent").url
    with ExitStack() as stack:
        yield Site(Place(request.param, where, f"test-{uuid.uuid4().hex[:8]}"), stack)


def together(*calls: Callable[[], object]) -> list[object]:
    """Run the calls in one thread each, started together, and return their results."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestTopology:
    def test_topology_is_absent_at_first(self, site: Site) -> None:
        assert site.open().read() == StoredTopology(None, NOTHING)

    def test_topology_is_read_as_written(self, site: Site) -> None:
        writer, reader = site.open(), site.open()
        member = Member("p1", "tcp://[::1]:5000", "store", "zöne", 2.0)
        written = topology(site.place).with_member(member)
        assert writer.compare_and_set(written, NOTHING)
        assert reader.read().topology == written
        assert reader.read().token != NOTHING

    def test_topology_is_created_once_by_concurrent_writers(self, site: Site) -> None:
        actors = [site.actor() for _ in range(2)]
        members = [site.open() for _ in range(6)]
        assert all(actor.acquire("warm up") is False for actor in actors)
        for number, actor in enumerate(actors):
            actor.ask("create", 100 + number)

        def create(number: int) -> Callable[[], object]:
            return lambda: members[number].compare_and_set(topology(site.place, number + 1), 0)

        created = together(*(create(number) for number in range(6)))
        created += [actor.answer() for actor in actors]
        assert sorted(map(bool, created)) == [False] * 7 + [True]
        epochs = [1, 2, 3, 4, 5, 6, 100, 101]
        stored = members[0].read().topology
        assert stored is not None
        assert stored.epoch == epochs[created.index(True)]

    def test_concurrent_topology_updates_are_not_lost(self, site: Site) -> None:
        members = [site.open() for _ in range(4)]
        assert members[0].compare_and_set(topology(site.place), NOTHING)

        def add(membership: Membership) -> int:
            conflicts = 0
            for _ in range(10):
                while True:
                    found = membership.read()
                    assert found.topology is not None
                    if membership.compare_and_set(found.topology.next(), found.token):
                        break
                    conflicts += 1
            return conflicts

        together(*(lambda member=member: add(member) for member in members))
        stored = members[0].read().topology
        assert stored is not None
        assert stored.epoch == 41

    def test_topology_write_with_stale_token_is_refused(self, site: Site) -> None:
        membership = site.open()
        first = topology(site.place)
        assert membership.compare_and_set(first, NOTHING)
        token = membership.read().token
        assert membership.compare_and_set(first.next(), token)
        assert not membership.compare_and_set(first.next().next(), token)
        assert not membership.compare_and_set(first.next().next(), NOTHING)
        assert not membership.compare_and_set(first.next().next(), token + 1000)
        assert membership.read().topology == first.next()

    def test_each_topology_write_has_a_new_token(self, site: Site) -> None:
        membership = site.open()
        last = NOTHING
        tokens = {last}
        for epoch in (1, 2, 3):
            assert membership.compare_and_set(topology(site.place, epoch), last)
            last = membership.read().token
            tokens.add(last)
        assert len(tokens) == 4

    def test_topology_holds_a_thousand_members(self, site: Site) -> None:
        members = tuple(
            Member(f"peer-{n:04}", f"tcp://10.0.0.1:{n + 1}", "s" * 32, "zone") for n in range(1000)
        )
        large = replace(topology(site.place), members=members)
        membership = site.open()
        assert membership.compare_and_set(large, NOTHING)
        assert membership.read().topology == large

    def test_clusters_have_separate_topologies(self, site: Site) -> None:
        membership = site.open()
        assert membership.compare_and_set(topology(site.place), NOTHING)
        other = replace(site.place, cluster=f"{site.place.cluster}/x").open()
        try:
            assert other.read() == StoredTopology(None, NOTHING)
            assert not other.alive()
        finally:
            other.close()


class TestLiveness:
    def test_peer_is_live_between_announce_and_resign(self, site: Site) -> None:
        peer, other = site.open(), site.open()
        assert not peer.is_announced()
        peer.announce(announcement("p1"))
        assert peer.is_announced()
        assert other.alive() == peer.alive() == {"p1": announcement("p1")}
        peer.resign()
        assert not peer.is_announced()
        assert other.alive() == {}
        peer.announce(announcement("p1", 5001))
        assert other.alive() == {"p1": announcement("p1", 5001)}

    def test_second_announce_updates_the_announcement(self, site: Site) -> None:
        peer, other = site.open(), site.open()
        peer.announce(announcement("p1", 5000, "candidate of a long name"))
        peer.announce(announcement("p1", 5001, "member"))
        assert other.alive() == {"p1": announcement("p1", 5001, "member")}
        assert peer.is_announced()

    def test_membership_announces_one_id_only(self, site: Site) -> None:
        peer = site.open()
        peer.announce(announcement("p1"))
        with pytest.raises(MembershipError, match="already announced as 'p1'"):
            peer.announce(announcement("p2"))
        assert list(peer.alive()) == ["p1"]

    def test_peer_with_unusual_name_is_live(self, site: Site) -> None:
        members = [site.open() for _ in AWKWARD]
        for membership, name in zip(members, AWKWARD, strict=True):
            membership.announce(announcement(name))
            assert membership.acquire(name)
        assert members[0].alive() == {name: announcement(name) for name in AWKWARD}

    @pytest.mark.parametrize("name", ["", "x" * 300, "\udc80"])
    def test_invalid_peer_name_is_refused(self, site: Site, name: str) -> None:
        with pytest.raises(MembershipError):
            site.open().announce(announcement(name))
        with pytest.raises(MembershipError):
            replace(site.place, cluster=name).open()

    def test_announce_fails_for_the_id_of_a_live_process(self, site: Site) -> None:
        first = site.open()
        first.announce(announcement("p1", 5007))
        second, third = site.actor(), site.open()
        second.ask("announce", "p1")
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(third.announce, announcement("p1", 1))
            stays_true(first.is_announced, 1.0, "the first is announced")
            with pytest.raises(PeerIdInUse, match=r"'p1' is in use .* at tcp://127.0.0.1:5007"):
                refused.result()
        assert second.answer() == "PeerIdInUse"
        assert not third.is_announced()
        third.close()
        assert first.is_announced()
        assert first.alive() == {"p1": announcement("p1", 5007)}

    def test_one_of_many_concurrent_announcers_wins(self, site: Site) -> None:
        actors = [site.actor() for _ in range(4)]
        assert not any(actor.acquire("warm up") for actor in actors)
        for actor in actors:
            actor.ask("announce", "p1")
        assert sorted(actor.answer() for actor in actors) == ["", *["PeerIdInUse"] * 3]
        assert list(site.open().alive()) == ["p1"]

    def test_liveness_ends_with_the_process(self, site: Site) -> None:
        actor, other = site.actor(), site.open()
        assert actor.announce("p1") == ""
        assert list(other.alive()) == ["p1"]
        actor.kill()
        wait_until(lambda: not other.alive(), DEATH[site.place.backend], "the lock fell")

    def test_id_can_be_announced_again_after_a_crash(self, site: Site) -> None:
        for _ in range(2):
            actor = site.actor()
            assert actor.announce("p1") == ""
            assert actor.acquire("coordinator")
            actor.kill()
        peer = site.open()
        peer.announce(announcement("p1"))
        assert peer.alive() == {"p1": announcement("p1")}
        wait_until(
            lambda: peer.acquire("coordinator"), PATIENCE, "the lock of the ended process is free"
        )


class TestWatch:
    def test_watch_reports_every_kind_of_change(self, site: Site) -> None:
        watcher, peer = site.open(), site.open()
        assert watcher.watch(PATIENCE), "the first look is always news"
        assert not watcher.watch(0.3)
        actor = site.actor()
        changes: list[Callable[[], object]] = [
            lambda: peer.compare_and_set(topology(site.place), peer.read().token),
            lambda: peer.announce(announcement("p1")),
            lambda: peer.announce(announcement("p1", state="member")),
            lambda: peer.resign(),
            lambda: actor.announce("p2"),
            lambda: actor.kill(),
        ]
        for change in changes:
            change()
            assert watcher.watch(PATIENCE)
            while watcher.watch(0.3):  # a change may be reported in parts
                pass

    def test_watch_reports_a_change_while_waiting(self, site: Site) -> None:
        watcher, peer = site.open(), site.open()
        assert watcher.watch(PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(watcher.watch, PATIENCE)
            assert not waiting.done()
            peer.announce(announcement("p1"))
            assert waiting.result(), "it ends with news, not with its time"

    def test_watch_reports_changes_between_calls(self, site: Site) -> None:
        watcher, peer = site.open(), site.open()
        assert watcher.watch(PATIENCE)
        assert peer.compare_and_set(topology(site.place), NOTHING)
        wait_until(lambda: peer.read().topology, PATIENCE, "it is there")
        assert watcher.watch(PATIENCE)

    def test_watch_returns_when_woken_or_closed(self, site: Site) -> None:
        for end in ("wake", "close"):
            watcher = site.open()
            assert watcher.watch(PATIENCE)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(watcher.watch, LONG)
                getattr(watcher, end)()
                assert waiting.result(PATIENCE) is False

    def test_wake_ends_one_watch_only(self, site: Site) -> None:
        watcher = site.open()
        assert watcher.watch(PATIENCE)
        watcher.wake()
        watcher.wake()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(watcher.watch, LONG).result(PATIENCE) is False
        began = time.monotonic()
        assert not watcher.watch(0.3)
        assert time.monotonic() - began >= 0.3


class TestNamedLocks:
    def test_named_lock_requires_announced_peer(self, site: Site) -> None:
        assert not site.open().acquire("coordinator")

    def test_named_lock_has_one_holder(self, site: Site) -> None:
        members = [site.open() for _ in range(4)]
        for number, membership in enumerate(members):
            membership.announce(announcement(f"p{number}"))
        taken = together(
            *(lambda member=member: member.acquire("coordinator") for member in members)
        )
        assert sorted(map(bool, taken)) == [False, False, False, True]
        holder = members[taken.index(True)]
        others = [member for member in members if member is not holder]
        assert holder.acquire("coordinator"), "it is held still"
        assert holder.acquire("another")
        for other in others:
            other.release("coordinator")
            assert not other.acquire("coordinator")
        holder.release("coordinator")
        assert others[0].acquire("coordinator")
        assert not holder.acquire("coordinator")

    def test_resign_releases_named_locks(self, site: Site) -> None:
        first, second = site.open(), site.open()
        first.announce(announcement("p1"))
        second.announce(announcement("p2"))
        assert first.acquire("coordinator")
        first.resign()
        assert second.acquire("coordinator")
        assert not first.acquire("coordinator")

    def test_named_locks_are_released_at_process_end(self, site: Site) -> None:
        actor, peer = site.actor(), site.open()
        assert actor.announce("p1") == ""
        peer.announce(announcement("p2"))
        assert actor.acquire("coordinator")
        assert not peer.acquire("coordinator")
        actor.kill()
        wait_until(lambda: peer.acquire("coordinator"), DEATH[site.place.backend], "it is free")


class TestClose:
    def test_close_releases_everything(self, site: Site) -> None:
        before = set(threading.enumerate())
        peer, other = site.open(), site.open()
        peer.announce(announcement("p1"))
        other.announce(announcement("p2"))
        assert peer.acquire("coordinator")
        assert peer.watch(PATIENCE)
        began = time.monotonic()
        peer.close()
        assert time.monotonic() - began < 20, "it waits for no blocking query, of 30 s"
        assert not peer.is_announced()
        assert list(other.alive()) == ["p2"]
        assert other.acquire("coordinator")
        other.close()
        assert set(threading.enumerate()) == before

    def test_second_close_does_nothing(self, site: Site) -> None:
        peer, other = site.open(), site.open()
        peer.announce(announcement("p1"))
        for _ in range(2):
            peer.close()
        assert other.alive() == {}
        with pytest.raises(MembershipError):
            peer.read()
