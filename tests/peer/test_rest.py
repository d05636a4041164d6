"""Between events a peer rests. An event disturbs its background, only its registers, or neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology.announcement import FEATURES
from dstash.version import stamp_at
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error
from dstash.wire.registers import KEEP, Change, Changed, ChangeKind
from dstash.wire.registers.consensus import Accepted
from dstash.wire.shapes import Message
from tests.peer.commits.test_votes import accept, blobs, register
from tests.peer.test_core import EPOCH, START, Peer, topology

CHANGE = Change(
    *("@r", b"caller01", stamp_at(START + 1000, 1), False, ChangeKind.DELETE, KEEP, 0, b"", b""),
    *(blobs(b"k"), blobs()),
)


@pytest.fixture
def peer() -> Peer:
    """A peer that rests."""
    alone = topology("a", replicas=1)
    members = tuple(replace(member, features=FEATURES) for member in alone.members)
    peer = Peer(replace(alone, registers=True, members=members))
    peer.core.local_partitions.freshness_confirmed = True
    peer.iterate()
    assert peer.core.is_idle_at(peer.now)
    return peer


def receive(peer: Peer, message: Message) -> list[Message]:
    replies = peer.core.receive(b"b", encode(Envelope(7, EPOCH, 0, message)), peer.now)
    return [decode(reply.frames).message for reply in replies]


def commit(peer: Peer) -> list[Message]:
    commit = peer.core.next_commit(peer.now)
    assert commit is not None
    commit.run(peer.store)
    return [decode(reply.frames).message for reply in peer.core.committed(commit, peer.now)]


def tick(peer: Peer) -> list[Message]:
    return [decode(reply.frames).message for reply in peer.core.tick(peer.now)[0]]


def test_vote_for_another_peer_disturbs_nothing(peer: Peer) -> None:
    assert receive(peer, accept(register(b"k", milliseconds=START))) == []
    assert peer.core.is_idle_at(peer.now)
    [answer] = commit(peer)
    assert isinstance(answer, Accepted)
    assert peer.core.is_idle_at(peer.now)


def test_refused_vote_disturbs_the_background(peer: Peer) -> None:
    stale = Envelope(7, EPOCH - 1, 0, accept(register(b"k", milliseconds=START)))
    [reply] = peer.core.receive(b"b", encode(stale), peer.now)
    assert isinstance(decode(reply.frames).message, Error)
    assert not peer.core.is_idle_at(peer.now)


def test_change_of_a_register_disturbs_no_background(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer.core, "_tick_background", lambda now: pytest.fail("was disturbed"))
    assert receive(peer, CHANGE) == []
    answers = []
    while not peer.core.is_idle_at(peer.now):
        answers += tick(peer)
        if peer.core._backlog.has_waiting:
            assert commit(peer) == []
    [answer] = answers
    assert isinstance(answer, Changed)


def test_calm_peer_rests_until_its_history_has_a_sample(peer: Peer) -> None:
    peer.now += 1000  # the history takes one
    peer.iterate()
    peer.now += 11
    tick(peer)  # looks whether a task is due
    assert peer.core.is_calm
    assert peer.core.idle_time(peer.now) == peer.core.history.due - peer.now == 989


def test_set_back_clock_ends_the_rest(peer: Peer) -> None:
    assert not peer.core.is_idle_at(peer.now - 1)
