"""A short look-up sends and returns what a look-up does, and hands over to one in every trouble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.reads import LookupOperation
from dstash.client.operations.short.lookup import ShortLookup
from dstash.errors import TimedOut, Unavailable, UndecodableValue
from dstash.types import Level
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Lookup, Values
from tests.harness.joined import TYPES, Joined


class Cluster(Joined):
    """Three replicas, and a client whose look-ups are short."""

    def short(self, key: str = "k", level: str = "quorum", timeout: int = 5000) -> ShortLookup:
        """Return a short look-up that has not begun."""
        return ShortLookup(
            self.session,
            self.now + timeout,
            "i",
            key,
            key.encode(),
            Level(level),
            TYPES.decode_values,
        )

    def look_up(self, key: str = "k", level: str = "quorum", timeout: int = 5000) -> ShortLookup:
        """Run a short look-up to its end; its result, or error, is left in it."""
        call = self.short(key, level, timeout)
        try:
            self.run(call)  # type: ignore[arg-type]  # the harness drives any call
        except (TimedOut, Unavailable, UndecodableValue):
            assert call.done
        return call


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.put({"k": "value"}, "all")
    return cluster


def was_short(call: ShortLookup) -> bool:
    """Whether no operation has taken a call over."""
    return call._general is None


def lookups(cluster: Cluster) -> list[tuple[str, Envelope]]:
    """Return the look-ups that peers were asked."""
    return [(peer, sent) for peer, sent in cluster.asked if isinstance(sent.message, Lookup)]


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_sends_the_requests_of_a_lookup(cluster: Cluster, level: str) -> None:
    call = cluster.look_up(level=level)
    assert (call.result(), was_short(call)) == ({"k": "value"}, True)
    mine = lookups(cluster)
    cluster.asked.clear()
    assert cluster.lookup("k", level=level) == {"k": "value"}
    theirs = [(peer, sent._replace(correlation=0)) for peer, sent in lookups(cluster)]
    assert [(peer, sent._replace(correlation=0)) for peer, sent in mine] == theirs


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_missing_key_is_not_found(cluster: Cluster, level: str) -> None:
    call = cluster.look_up("other", level)
    assert (call.result(), was_short(call)) == ({}, True)


def test_frames_of_an_answer_have_the_same_result() -> None:
    cluster = Cluster()
    cluster.put({"k": "value"}, "all")
    call = cluster.short()
    for send in call.more(cluster.now):
        core = cluster.peers[send.peer]
        [reply] = core.receive(b"client", send.frames, cluster.now)
        assert call.receive_frames(send.peer, reply.frames, cluster.now) == []
    assert (call.done, call.result(), was_short(call)) == (True, {"k": "value"}, True)


def test_frames_of_other_messages_are_not_taken(cluster: Cluster) -> None:
    call = cluster.short()
    [send, _] = call.more(cluster.now)
    [reply] = cluster.peers[send.peer].receive(b"client", send.frames, cluster.now)
    header = reply.frames[0]
    for frames in ([header], [b"\xc1", reply.frames[1]], [header, b"", b""], send.frames):
        assert call.receive_frames(send.peer, frames, cluster.now) is None
    assert call.receive_frames(send.peer, reply.frames, cluster.now) == []
    assert call.receive_frames(send.peer, reply.frames, cluster.now) is None  # a repeated answer


def test_replicas_that_differ_are_reconciled(cluster: Cluster) -> None:
    cluster.forget("b", "k")
    cluster.forget("c", "k")
    call = cluster.look_up(level="all")
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)
    assert cluster.record("b", "k") == cluster.record("a", "k")  # repaired


def test_corrupt_record_is_replaced_by_other_replicas(cluster: Cluster) -> None:
    [(peer, _)] = lookups_of(cluster)
    cluster.corruption(peer, "k")
    call = cluster.look_up(level="one")
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)


def test_silent_replica_is_replaced(cluster: Cluster) -> None:
    cluster.silent.update(peer for peer, _ in lookups_of(cluster))
    before = cluster.now
    call = cluster.look_up(level="one")
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)
    assert cluster.now - before < 1000
    assert any(cluster.session.is_suspect(peer) for peer in cluster.silent)


def lookups_of(cluster: Cluster) -> list[tuple[str, Envelope]]:
    """Return the requests that a look-up at one sends."""
    return [(send.peer, decode(send.frames)) for send in cluster.short(level="one").more(0)]


def test_replica_that_refuses_connections_is_replaced(cluster: Cluster) -> None:
    cluster.down.update(peer for peer, _ in lookups_of(cluster))
    call = cluster.look_up(level="one")
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)


def test_client_with_a_suspect_peer_makes_no_short_calls(cluster: Cluster) -> None:
    cluster.session.suspect("b", cluster.now)
    call = cluster.look_up()
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)


def test_silent_seed_does_not_prevent_short_calls(cluster: Cluster) -> None:
    cluster.session.suspect("tcp://elsewhere:1", cluster.now)
    assert was_short(cluster.look_up())


def test_removed_suspect_does_not_prevent_short_calls(cluster: Cluster) -> None:
    cluster.session.suspect("c", cluster.now)
    left = tuple(member for member in cluster.topology.members if member.id != "c")
    smaller = replace(cluster.topology.next(), members=left)
    cluster.install(smaller, "a", "b")
    cluster.session.install(smaller.encode(), ["a", "b"])
    assert was_short(cluster.look_up(level="one"))


def test_stale_epoch_is_learnt(cluster: Cluster) -> None:
    newer = cluster.topology.next()
    cluster.install(newer)
    cluster.settle()
    call = cluster.look_up()
    assert (call.result(), was_short(call)) == ({"k": "value"}, False)
    assert cluster.session.epoch == newer.epoch


def test_lost_connection_hands_the_unanswered_request_over(cluster: Cluster) -> None:
    call = cluster.short()
    [first, second] = call.more(cluster.now)
    [reply] = cluster.peers[first.peer].receive(b"client", first.frames, cluster.now)
    call.receive(first.peer, decode(reply.frames), cluster.now)
    again = call.lost(second.peer, cluster.now)
    assert {send.peer for send in again} <= set("abc") - {second.peer}
    assert cluster.run(call, again) == {"k": "value"}  # type: ignore[arg-type]


def test_deadline_without_an_answer_is_a_timeout(cluster: Cluster) -> None:
    cluster.silent.update("abc")
    call = cluster.look_up(timeout=1000)
    with pytest.raises(TimedOut, match="no answer"):
        call.result()


def test_value_that_cannot_be_decoded_names_the_key(cluster: Cluster) -> None:
    def unknown_type(envelope: Envelope) -> Envelope:
        if not isinstance(envelope.message, Values) or not envelope.message.values[1:]:
            return envelope
        values: Any = b"\x91\xd4\x07\x00"  # a registered type of another client
        return envelope._replace(message=Values(1, envelope.message.digest, [], [], values))

    cluster.tamper_answer = unknown_type
    call = cluster.look_up(level="one")
    with pytest.raises(UndecodableValue, match="k"):
        call.result()
    assert not was_short(call)


def test_operation_continues_with_the_requests_of_a_short_call(cluster: Cluster) -> None:
    call = cluster.short()
    sends = call.more(cluster.now)
    general = call._continued()
    assert isinstance(general, LookupOperation)
    assert general._pending.keys() == {send.correlation for send in sends}
    assert not general.hungry
