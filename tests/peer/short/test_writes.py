"""Short puts are stored and answered as by the dispatch, and what it may refuse is left to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import DiskFull, DStashError, StoreFailed
from dstash.limits import MAX_TTL_SECONDS
from dstash.peer.commits.commit import Commit
from dstash.peer.short.writes import ShortPut
from dstash.store.record import Keyspace
from dstash.store.sealing import locate
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Put, Stored
from dstash.wire.shapes import Frame
from tests.peer.short.parts import REFUSING
from tests.peer.test_core import EPOCH, START, Peer, keys, put, topology

TRACE = f"00-{'1' * 32}-{'2' * 16}-01"
OLD, NOW, LATER = (
    START + 900,
    START + 1010,
    START + 1100,
)  # the index was made between the first two


def make_peer(view: Topology | None = None) -> Peer:
    peer = Peer(view or topology())
    peer.core.local_partitions.freshness_confirmed = True
    peer.ask(put(b"first"))  # so the index is known
    return peer


@pytest.fixture
def peer() -> Peer:
    return make_peer()


@pytest.fixture
def twin() -> Peer:
    """Return a peer that accepts every write by the dispatch."""
    peer = make_peer()
    peer.core._short_writes.accept = lambda *_: False  # type: ignore[method-assign]  # for this peer alone
    return peer


def frames(
    key: bytes = b"key",
    value: bytes = b"\xa4text",
    *,
    at: int = NOW,
    expiry: int = 0,
    index: str = "i",
    correlation: int = 7,
    **header: int,
) -> list[bytes]:
    """Return a put; ``value`` is as stored."""
    message = Put(index, pack(stamp_at(at), b"abcd"), expiry, keys(key), keys(value))
    fields = {"epoch": EPOCH, "moment": 0, "protocol": 2} | header
    return encode(Envelope(correlation, message=message, **fields))  # type: ignore[arg-type]  # numbers


def is_accepted(peer: Peer, parts: list[bytes]) -> bool:
    """Return whether a message is accepted without the dispatch."""
    return peer.core._short_writes.accept(b"client", parts, peer.now)


def answers(peer: Peer, *messages: list[bytes]) -> list[list[bytes]]:
    """Return the frames of the answers to messages whose writes share a commit."""
    replies = [
        reply for parts in messages for reply in peer.core.receive(b"client", parts, peer.now)
    ]
    while (commit := peer.core.next_commit(peer.now)) is not None:
        commit.run(peer.store)
        replies += peer.core.committed(commit, peer.now)
    return [reply.frames for reply in replies]


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize(
    "value",
    [b"\xc0", b"\xa4text", b"\x93\x01\x02\xc4\x01x", b"\xc5\xff\xf0" + bytes(65_520)],
    ids=range(4),
)
@pytest.mark.parametrize("expiry", [0, START + 60_000, START - 1])
def test_put_has_the_record_and_the_answer_of_the_dispatch(
    peer: Peer, twin: Peer, value: bytes, expiry: int, protocol: int
) -> None:
    sent = frames(b"a", value, expiry=expiry, protocol=protocol)
    assert is_accepted(make_peer(), sent)
    answered = answers(peer, sent)
    assert answered == answers(twin, sent)
    assert decode(answered[0]).message == Stored([])
    assert peer.store.records == twin.store.records
    assert peer.store.high_water == twin.store.high_water
    assert len(peer.store.records) == 2


@pytest.mark.parametrize("ahead", [499, 501])
def test_put_from_the_future_is_refused_as_by_the_dispatch(
    peer: Peer, twin: Peer, ahead: int
) -> None:
    sent = frames(at=peer.now + ahead)
    answered = answers(peer, sent)
    assert answered == answers(twin, sent)
    assert isinstance(decode(answered[0]).message, Error if ahead > 500 else Stored)
    assert peer.store.records == twin.store.records


def test_writes_of_one_commit_in_any_order_are_answered_as_by_the_dispatch(
    peer: Peer, twin: Peer
) -> None:
    for at, other in ((NOW, OLD), (OLD, NOW), (LATER, LATER)):
        sent = [
            frames(b"a", at=at, correlation=1),
            frames(b"a", b"\xa5other", at=other, correlation=2),
            frames(b"b", at=LATER, correlation=3),
        ]
        assert answers(peer, *sent) == answers(twin, *sent)
        assert peer.store.records == twin.store.records


def test_older_put_gets_the_version_that_superseded_it(peer: Peer, twin: Peer) -> None:
    for at in (NOW, OLD):
        answered = answers(peer, frames(at=at))
        assert answered == answers(twin, frames(at=at))
    message = decode(answered[0]).message
    assert isinstance(message, Stored)
    assert message.rejected == [[0, 0, pack(stamp_at(NOW), b"abcd")]]


@pytest.mark.parametrize("at", [OLD, LATER])
def test_put_on_a_corrupt_record_is_answered_as_by_the_dispatch(
    peer: Peer, twin: Peer, at: int
) -> None:
    for each in (peer, twin):
        answers(each, frames(at=NOW))
        [place] = locate(each.core.keyspaces.find("i"), [b"key"])
        record = bytearray(each.store.records[place])
        record[-1] ^= 1
        each.store.records[place] = bytes(record)
    assert answers(peer, frames(at=at)) == answers(twin, frames(at=at))
    assert peer.store.records == twin.store.records
    found = peer.core.local_partitions.corruption.found
    assert found == twin.core.local_partitions.corruption.found == int(at == OLD)


def test_full_disk_refuses_puts_at_the_commit(
    peer: Peer, twin: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (peer, twin):
        monkeypatch.setattr(each.store, "has_room", lambda reserve: False)
    answered = answers(peer, frames())
    assert answered == answers(twin, frames())
    assert "disk is full" in str(decode(answered[0]).message)


def test_horizon_that_was_set_after_the_arrival_refuses_the_put(peer: Peer, twin: Peer) -> None:
    answered = []
    for each in (peer, twin):
        each.core.be_busy(True)  # so that the put waits
        each.core.receive(b"client", frames(), each.now)
        each.core.local_partitions.newest_horizon = stamp_at(LATER)
        commit = each.core.next_commit(each.now)
        assert commit is not None
        commit.run(each.store)
        answered += [reply.frames for reply in each.core.committed(commit, each.now)]
    assert answered[0] == answered[1]
    assert "older than what may still be accepted" in str(decode(answered[0]).message)


def test_both_paths_count_the_same(peer: Peer, twin: Peer) -> None:
    for at in (NOW, LATER, OLD):
        assert answers(peer, frames(at=at)) == answers(twin, frames(at=at))
    ours, theirs = peer.core.meters, twin.core.meters
    assert ours.requests == theirs.requests
    assert ours.writes == theirs.writes
    assert ours.written_keys.cumulative() == theirs.written_keys.cumulative()
    assert peer.core.health.counts == twin.core.health.counts
    assert peer.core._backlog.waiting_bytes == twin.core._backlog.waiting_bytes == 0


def test_changed_partitions_are_known(peer: Peer, twin: Peer) -> None:
    for each in (peer, twin):
        answers(each, frames())
    local = peer.core.local_partitions
    assert local.digests._changes == twin.core.local_partitions.digests._changes
    assert any(local.digests._changes)
    assert local._changed_at == twin.core.local_partitions._changed_at
    assert any(local._changed_at)


def test_put_that_nothing_waits_for_leaves_the_background_idle(peer: Peer) -> None:
    peer.core.is_calm = True
    for _ in range(3):
        peer.core.tick(peer.now)
    assert peer.core.is_idle_at(peer.now)
    assert answers(peer, frames())
    assert peer.core.is_idle_at(peer.now)
    waited: list[str] = []
    peer.core.receive(b"client", frames(at=LATER), peer.now)
    peer.core._backlog.settle(lambda: waited.append("task"))
    assert answers(peer)
    assert waited == ["task"]
    assert not peer.core.is_idle_at(peer.now), "the task continues"


def test_put_from_before_a_step_of_the_clock_is_left_to_the_dispatch(peer: Peer) -> None:
    assert is_accepted(peer, frames(moment=peer.now + 700))
    answers(peer)
    sent_at = peer.now
    peer.now -= 3_600_000
    assert not is_accepted(peer, frames(at=LATER, moment=sent_at + 700))
    assert is_accepted(peer, frames(at=LATER, moment=peer.now + 700))


def test_put_that_is_stamped_last_is_a_commit_of_its_own(peer: Peer) -> None:
    peer.core.receive(b"client", frames(b"a", correlation=1), peer.now)
    peer.core.receive(b"client", frames(b"b", at=LATER, correlation=2), peer.now)
    first = peer.core.next_commit(peer.now)
    assert isinstance(first, ShortPut)
    assert peer.core.has_work
    first.run(peer.store)
    [reply] = peer.core.committed(first, peer.now)
    assert decode(reply.frames).correlation == 1
    second = peer.core.next_commit(peer.now)
    assert isinstance(second, Commit), "it waited for the first"
    second.run(peer.store)
    [reply] = peer.core.committed(second, peer.now)
    assert decode(reply.frames).correlation == 2
    assert not peer.core.has_work
    assert len(peer.store.records) == 3


def test_puts_of_a_busy_peer_share_a_commit(peer: Peer) -> None:
    peer.core.be_busy(True)
    for number in range(5):
        assert is_accepted(peer, frames(b"%d" % number, correlation=number))
    commit = peer.core.next_commit(peer.now)
    assert isinstance(commit, Commit)
    assert len(commit.waiting) == 5


@pytest.mark.parametrize("error", [DiskFull("no room"), StoreFailed("the disk failed"), None])
def test_put_that_cannot_be_stored_alone_is_left_to_a_general_commit(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, error: DStashError | None
) -> None:
    def put_newest(*given: object) -> bool:
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(peer.store, "put_newest", put_newest)
    answered = answers(peer, frames())
    assert decode(answered[0]).message == Stored([])
    assert len(peer.store.records) == 2
    assert not peer.core.has_work
    assert peer.core._backlog.waiting_bytes == 0
    assert peer.core.failure is None


def test_put_is_not_stored_twice_when_its_commit_met_a_defect(peer: Peer) -> None:
    peer.core.receive(b"client", frames(), peer.now)
    commit = peer.core.next_commit(peer.now)
    assert commit is not None
    commit.fatal = DStashError("commit failed")  # as the server notes it
    assert peer.core.committed(commit, peer.now) == []
    assert peer.core.failure is commit.fatal
    assert peer.core.next_commit(peer.now) is None


TWO_VALUES = Frame(codec.pack_blobs([b"\x01", b"\x02"]))


@pytest.mark.parametrize(
    "parts",
    [
        frames(epoch=EPOCH - 1),
        frames(epoch=EPOCH + 1),
        frames(moment=START),
        frames(protocol=9),
        frames(index="@i"),
        frames(index="unknown"),
        frames(b"k" * 401),
        frames(b""),
        frames(value=b"\xc5\xff\xff" + bytes(65_535)),
        frames(value=b""),
        frames(value=b"\xa4tex"),
        frames(value=b"\x01\x02"),
        encode(Envelope(7, EPOCH, 0, Put("i", b"short", 0, keys(b"k"), keys(b"\x01")), 2)),
        encode(Envelope(7, EPOCH, 0, replace(put(b"k"), replaces=bytes(20)), 2)),
        encode(Envelope(7, EPOCH, 0, replace(put(b"k"), payloads=TWO_VALUES), 2)),
        encode(Envelope(7, EPOCH, 0, put(b"k", b"l"), 2)),
        encode(Envelope(7, EPOCH, 0, put(b"k"), 2, TRACE)),
        frames()[:2],
        [*frames(), b"more"],
        [b"\x98" + b"\xff" * 8, *frames()[1:]],
        [b"", *frames()[1:]],
    ],
    ids=range(21),
)
def test_other_requests_are_left_to_the_dispatch(peer: Peer, parts: list[bytes]) -> None:
    assert not is_accepted(peer, parts)
    assert not peer.core.store.high_water > stamp_at(NOW)


def test_fields_of_wrong_types_are_left_to_the_dispatch(peer: Peer) -> None:
    header = codec.unpack_header(frames()[0])
    for place in range(8):
        for wrong in ("text", -1, None, 1.5, [1]):
            if type(wrong) is type(header[place]):
                continue
            changed = [*header[:place], wrong, *header[place + 1 :]]
            parts = [codec.pack_header(changed), *frames()[1:]]
            assert not is_accepted(peer, parts), (place, wrong)


def _floor(peer: Peer) -> None:
    peer.core.local_partitions.floor = stamp_at(LATER)


def _settings(peer: Peer) -> None:
    with_settings = replace(topology(), indexes=(IndexSettings("i", max_ttl=5),))
    peer.core.install(View(with_settings, frozenset("a")), peer.now)
    peer.ask(put(b"first", expiry=START + 5000))


def _elsewhere(peer: Peer) -> None:
    peer.core.keyspaces._by_index["i"] = Keyspace(b"i", ())


def _busy(peer: Peer) -> None:
    backlog = peer.core._backlog
    backlog.waiting_bytes = backlog.max_bytes


@pytest.mark.parametrize(
    "change",
    [
        *REFUSING,
        *(_floor, _settings, _elsewhere, _busy),
    ],
)
def test_peer_that_may_refuse_leaves_puts_to_the_dispatch(
    peer: Peer, change: Callable[[Peer], None]
) -> None:
    assert is_accepted(peer, frames())
    answers(peer)
    change(peer)
    assert not is_accepted(peer, frames(at=LATER))


def test_waiting_requests_leave_puts_to_the_dispatch(peer: Peer) -> None:
    peer.core._backlog._max_requests = 64
    accepted = [is_accepted(peer, frames(correlation=number)) for number in range(70)]
    assert accepted == [True] * 64 + [False] * 6


def test_time_to_live_over_the_limit_is_refused(peer: Peer, twin: Peer) -> None:
    expiry = peer.now + MAX_TTL_SECONDS * 1000 + 1
    answered = answers(peer, frames(expiry=expiry))
    assert answered == answers(twin, frames(expiry=expiry))
    assert "100 years" in str(decode(answered[0]).message)
