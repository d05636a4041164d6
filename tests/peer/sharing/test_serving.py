"""The heartbeat shows a ticket as long as no check could refuse a read, and its mark is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dstash.cluster.topology.drops import Drop
from dstash.cluster.topology.view import View
from dstash.peer.sharing.serving import Outlet
from dstash.store.sharing.mark import SERVING_MARK, Generation, ServingMark
from dstash.version import stamp_at
from tests.peer.test_core import EPOCH, START, Peer, topology

PLACE = ["boot", "machine", "/data", "store"]


class Shared(Peer):
    """A peer that shares its store."""

    def __init__(self) -> None:
        super().__init__(topology())
        self.file = Generation(1, 2)
        #: What the heartbeat has shown: tickets, and the data file of each.
        self.shown: list[tuple[int, Generation]] = []
        self.tickets = iter(range(101, 200))
        self.core.health.not_ready = None
        self.core.local_partitions.freshness_confirmed = True
        self.core.serving.share(
            Outlet(
                PLACE,
                lambda *shown: self.shown.append(shown),
                lambda: next(self.tickets),
                lambda: self.file,
            )
        )
        self.core.install(View(topology(), frozenset("a")), self.now)
        self.settle()

    def settle(self) -> None:
        """Let the tasks run, and their commits."""
        for _ in range(5):
            self.core.tick(self.now)
            while (commit := self.core.next_commit(self.now)) is not None:
                commit.run(self.store)
                self.core.committed(commit, self.now)

    def kept(self) -> ServingMark:
        """Return the mark in the store."""
        return ServingMark.decode(self.store.marked(SERVING_MARK))


@pytest.fixture
def peer() -> Shared:
    return Shared()


def test_ticket_is_shown_once_its_mark_is_in_the_store(peer: Shared) -> None:
    assert peer.kept().ticket == 101
    assert peer.shown == [(101, Generation(1, 2))]
    assert peer.kept().epoch == EPOCH
    assert peer.kept().cluster_id == topology().cluster_id
    assert len(peer.kept().partitions) == 4096
    peer.settle()
    assert len(peer.shown) == 1


def test_ticket_is_taken_back_before_a_later_epoch_is_served(peer: Shared) -> None:
    later = topology(epoch=EPOCH + 1)
    peer.core.install(View(later, frozenset("a")), peer.now)
    assert peer.shown[-1] == (0, Generation(1, 2))
    assert peer.kept().epoch == EPOCH, "the store has the mark of the epoch before"
    peer.settle()
    assert peer.shown[-1] == (102, Generation(1, 2))
    assert peer.kept()[:2] == (102, EPOCH + 1)


def _stop(peer: Shared) -> None:
    peer.core.health.stopping = True


def _not_ready(peer: Shared) -> None:
    peer.core.health.not_ready = "it starts"


def _rolled_back(peer: Shared) -> None:
    peer.core.local_partitions.freshness_confirmed = False


def _unsynced(peer: Shared) -> None:
    [member] = topology().members
    lost = replace(topology(epoch=EPOCH + 1), members=(replace(member, synced=False),))
    peer.core.install(View(lost, frozenset("a")), peer.now)


def _dropped(peer: Shared) -> None:
    peer.core.local_partitions.install_drops((Drop("i", "", stamp_at(START), EPOCH),))


def _failed(peer: Shared) -> None:
    peer.store.check_writable = lambda: "the disk failed"  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_stop, _not_ready, _rolled_back, _unsynced, _dropped, _failed])
def test_peer_that_may_refuse_reads_takes_the_ticket_back(
    peer: Shared, change: Callable[[Shared], None]
) -> None:
    change(peer)
    peer.core.tick(peer.now)
    assert [ticket for ticket, _ in peer.shown] == [101, 0]


def test_peer_that_serves_again_shows_another_ticket(peer: Shared) -> None:
    for confirmed in (False, True):
        peer.core.local_partitions.freshness_confirmed = confirmed
        peer.core.serving.watch()
        peer.settle()
        assert (peer.kept().ticket != 0) is confirmed
    assert [ticket for ticket, _ in peer.shown] == [101, 0, 0, 102]


def test_other_data_file_gets_another_ticket(peer: Shared) -> None:
    peer.file = Generation(1, 3)
    peer.settle()
    assert peer.shown[1:] == [(0, Generation(1, 3)), (102, Generation(1, 3))]


def test_mark_that_is_outdated_once_stored_is_not_shown(peer: Shared) -> None:
    peer.core.install(View(topology(epoch=EPOCH + 1), frozenset("a")), peer.now)
    peer.core.tick(peer.now)
    commit = peer.core.next_commit(peer.now)
    assert commit is not None
    peer.core.install(View(topology(epoch=EPOCH + 2), frozenset("a")), peer.now)
    commit.run(peer.store)
    peer.core.committed(commit, peer.now)
    peer.settle()
    assert [ticket for ticket, _ in peer.shown] == [101, 0, 103]
    assert peer.kept()[:2] == (103, EPOCH + 2)


def test_peer_that_does_not_share_stores_no_mark() -> None:
    peer = Peer(topology())
    peer.core.local_partitions.freshness_confirmed = True
    peer.core.tick(peer.now)
    assert peer.core.next_commit(peer.now) is None
    assert peer.core.serving.place == []
