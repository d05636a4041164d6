"""A short write sends and returns what its operation does, which continues it in every trouble."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from dstash.client.operations.base import Operation
from dstash.client.operations.short.call import ShortCall
from dstash.client.operations.short.write import ShortDelete, ShortPut, ShortWrite
from dstash.client.results import BatchResult
from dstash.client.session import Send
from dstash.client.sightings import Sighting
from dstash.cluster.topology.life import Life
from dstash.errors import (
    BelowFloor,
    Busy,
    ClockSkew,
    DeadlinePassed,
    DiskFull,
    DStashError,
    LimitError,
    Misrouted,
    ProtocolError,
    StoreFailed,
    Unauthorised,
)
from dstash.limits import PARTITIONS
from dstash.types import Level, Outcome
from dstash.version import pack, stamp_at
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Delete, Error, Ping, Put, Stored
from dstash.wire.replication import Hint
from tests.harness.joined import START, TYPES, Joined

KEY: Final = "k"
LEVELS: Final = ("one", "quorum", "all")
#: The clock of all peers when a test begins.
NOW: Final = START + 1000

#: Answers of a peer to a write, by name. Each is given the true answer.
ANSWERS: Final[dict[str, Callable[[Envelope], Any]]] = {
    "busy": lambda _: Error.of(Busy("busy", retry_after_ms=40)),
    "clock skew": lambda _: Error.of(ClockSkew("from the future")),
    "failed store": lambda _: Error.of(StoreFailed("no sync")),
    "floor": lambda _: Error.of(BelowFloor("too old", floor=stamp_at(NOW + 5))),
    "future floor": lambda _: Error.of(BelowFloor("too old", floor=stamp_at(NOW + 10**7))),
    "full": lambda _: Stored([[0, DiskFull.code, "full"]], b"\x00"),
    "late": lambda _: Error.of(DeadlinePassed("late")),
    "limit": lambda _: Stored([[0, LimitError.code, "too long"]], b"\x00"),
    "misrouted": lambda _: Error.of(Misrouted("not here")),
    "other kind": lambda _: Ping(),
    "own later version": lambda _: Stored([[0, 0, pack(stamp_at(NOW + 9), bytes(4))]], b"\x00"),
    "superseded": lambda _: Stored([[0, 0, pack(stamp_at(NOW + 9), b"zzzz")]], b"\x00"),
    "superseded in the future": lambda _: Stored(
        [[0, 0, pack(stamp_at(NOW + 10**7), b"zzzz")]], b"\x00"
    ),
    "existed": lambda _: Stored([], b"\x01"),
    "unauthorised": lambda _: Error.of(Unauthorised("no")),
    "unsure": lambda _: Stored([], b"\x00", b"\x01"),
}
#: What may happen to a request: it is answered as usual, lost, or answered otherwise.
EVENTS: Final = ("as usual", "lost", *ANSWERS)


class Cluster(Joined):
    """Three replicas, and a client whose writes are short if ``is_short``.

    Args:
        is_short: whether to make short calls.
        events: what happens to each write that a peer is sent, by peer; later ones are as usual.
    """

    def __init__(
        self, *, is_short: bool = True, events: dict[str, list[str]] | None = None
    ) -> None:
        super().__init__()
        self.is_short = is_short
        self.stores_seen: dict[str, Sighting] = {
            name: Sighting(f"store-{name}", Life(1, NOW, 0)) for name in self.peers
        }
        self._events = {peer: deque(names) for peer, names in (events or {}).items()}
        self._event_of: dict[int, str] = {}
        self.tamper = self._meet
        self.tamper_answer = self._answer

    def _meet(self, peer: str, envelope: Envelope) -> Envelope | None:
        if not isinstance(envelope.message, Put | Delete):
            return envelope
        events = self._events.get(peer)
        event = events.popleft() if events else "as usual"
        self._event_of[envelope.correlation] = event
        return None if event == "lost" else envelope

    def _answer(self, envelope: Envelope) -> Envelope:
        change = ANSWERS.get(self._event_of.get(envelope.correlation, ""))
        return envelope if change is None else envelope._replace(message=change(envelope))

    def _move(self, operation: Operation, sends: deque[Send]) -> None:
        """Give answers to short calls as the channel does."""
        if sends or not isinstance(operation, ShortCall):
            super()._move(operation, sends)
            return
        name, frames = self._answers.popleft()
        parts = encode(self.tamper_answer(decode(frames)))
        answer = operation.receive_frames(name, parts, self.now)
        if answer is None:
            answer = operation.receive(name, decode(parts), self.now)
        sends.extend(answer)

    def call(
        self, kind: str = "put", level: str = "quorum", ttl: int | None = None, timeout: int = 5000
    ) -> ShortWrite:
        """Return a short call that has not begun."""
        deadline, encoded = self.now + timeout, KEY.encode()
        more = (self.session, deadline, "i", Level(level))
        if kind == "put":
            [payload] = TYPES.encode_many(["value"])
            return ShortPut(*more, (KEY, encoded, payload), ttl)
        return ShortDelete(*more, (KEY, encoded, b""))

    def write(
        self, kind: str = "put", level: str = "quorum", ttl: int | None = None, timeout: int = 5000
    ) -> Any:
        """Make a call; return its outcome, or its error."""
        call: Any = self.call(kind, level, ttl, timeout)
        if not self.is_short:
            call = call.operation()
        call.stores = self.stores_seen
        try:
            return self.run(call)
        except DStashError as error:
            return error

    def taken(self) -> list[Any]:
        """Return what other parties can see: requests, records, time, clocks and sightings."""
        session = self.session
        return [
            self.asked,
            [store.records for store in self.stores.values()],
            self.now,
            {peer: session.is_suspect(peer) for peer in self.peers},
            {peer: session.peer_time(peer, 0) for peer in self.peers},
            {peer: seen.stamp for peer, seen in self.stores_seen.items()},
            list(session.outstanding._waiting),
            session.outstanding._bytes,
            session._current_identity().clock.last,
        ]


def shown(outcome: BatchResult | DStashError) -> Any:
    """Return all that a caller can see of an outcome."""
    if isinstance(outcome, DStashError):
        return (type(outcome), str(outcome), outcome.details)
    errors = [(key, type(error), str(error)) for key, error in outcome.errors.items()]
    return (outcome.stored, outcome.deleted, outcome.outcomes, errors, len(outcome.reasons))


def was_short(call: ShortWrite) -> bool:
    """Whether no operation has taken a call over."""
    return call._general is None


def expect_same(prepare: Callable[[Cluster], None], steps: Any, events: Any = None) -> Cluster:
    """Make the same calls with short calls and with operations, and compare all they do."""
    clusters = [Cluster(is_short=is_short, events=events) for is_short in (True, False)]
    for cluster in clusters:
        prepare(cluster)
    short, general = clusters
    for step in steps:
        mine, theirs = short.write(*step), general.write(*step)
        assert shown(mine) == shown(theirs), (step, events)
        assert short.taken() == general.taken(), (step, events)
    return short


def nothing(cluster: Cluster) -> None:
    """Leave a cluster as it is."""


@pytest.mark.parametrize("level", LEVELS)
def test_put_sends_the_requests_of_an_operation(level: str) -> None:
    cluster = expect_same(nothing, [("put", level), ("put", level, 60_000), ("put", level)])
    assert cluster.lookup(KEY, level="all") == {KEY: "value"}


@pytest.mark.parametrize("level", LEVELS)
def test_delete_returns_whether_the_key_existed(level: str) -> None:
    cluster = Cluster()
    assert cluster.write("delete", level).deleted == 0
    cluster.put({KEY: "value"}, "all")
    call = cluster.call("delete", level)
    result = cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
    assert (result.stored, result.deleted, was_short(call)) == (1, 1, True)
    assert cluster.write("delete", level).deleted == 0
    assert cluster.lookup(KEY, level="all") == {}


@pytest.mark.parametrize("kind", ["put", "delete"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("event", EVENTS)
def test_event_at_one_replica_has_the_same_result(kind: str, level: str, event: str) -> None:
    expect_same(nothing, [(kind, level), (kind, level)], {"b": [event]})


@pytest.mark.parametrize("seed", range(60))
def test_events_at_all_replicas_have_the_same_results(seed: int) -> None:
    rng = random.Random(seed)
    events = {peer: rng.choices(EVENTS, k=rng.randint(0, 5)) for peer in "abc"}
    down = rng.sample("abc", rng.choice((0, 0, 1, 2)))

    def prepare(cluster: Cluster) -> None:
        if rng.random() < 0.5:
            cluster.put({KEY: "old"}, "all")
        cluster.down.update(down)

    steps = [
        (
            rng.choice(("put", "delete")),
            rng.choice(LEVELS),
            rng.choice((None, 60_000)),
            rng.choice((400, 2000, 5000)),
        )
        for _ in range(4)
    ]
    state = rng.getstate()

    def prepare_alike(cluster: Cluster) -> None:
        rng.setstate(state)
        prepare(cluster)

    expect_same(prepare_alike, [(kind, level, ttl, ms) for kind, level, ttl, ms in steps], events)


@pytest.mark.parametrize("kind", ["put", "delete"])
def test_plain_write_is_short(kind: str) -> None:
    cluster = Cluster()
    for _ in range(3):
        call = cluster.call(kind)
        assert cluster.run(call).ok  # type: ignore[arg-type]  # the harness drives any call
        assert was_short(call)


def test_late_ack_of_an_earlier_write_is_taken_by_the_next() -> None:
    cluster = Cluster()
    waiting = cluster.session.outstanding
    late = ended_before(cluster, "c")
    assert (len(waiting), waiting._bytes) == (1, len(b"\x91\xc4\x01k"))
    cluster.session.suspect("c", cluster.now)
    call = cluster.call()
    ack = encode(Envelope(late.correlation, 5, 0, Stored([])))
    assert call.receive_frames("c", ack, cluster.now) == []
    assert (len(waiting), waiting._bytes, cluster.session.is_suspect("c")) == (0, 0, False)
    assert call.receive_frames("c", ack, cluster.now) is None


def test_late_refusal_of_an_earlier_write_leaves_a_hint() -> None:
    cluster = Cluster()
    late = ended_before(cluster, "c")
    call = cluster.call()
    refusal = encode(Envelope(late.correlation, 5, 0, Stored([[0, DiskFull.code, "full"]])))
    assert call.receive_frames("c", refusal, cluster.now) is None
    [send] = call.receive("c", decode(refusal), cluster.now)
    hint = decode(send.frames).message
    assert isinstance(hint, Hint)
    assert (hint.peer, call.is_running_short) == ("c", True)


def ended_before(cluster: Cluster, last: str) -> Send:
    """End a short call before one replica answers; return the request to that replica."""
    call = cluster.call()
    sends = {send.peer: send for send in call.more(cluster.now)}
    for peer in sends.keys() - {last}:
        ack = encode(Envelope(sends[peer].correlation, 5, cluster.now, Stored([])))
        assert call.receive_frames(peer, ack, cluster.now) == []
    assert call.result().ok
    assert was_short(call)
    return sends[last]


@pytest.mark.parametrize("kind", ["put", "delete"])
def test_stale_epoch_sends_the_same_version_again(kind: str) -> None:
    def outdate(cluster: Cluster) -> None:
        cluster.install(cluster.topology.next())
        cluster.settle()

    cluster = expect_same(outdate, [(kind, "all")])
    assert len(versions_of(cluster)) == 1


def versions_of(cluster: Cluster) -> set[bytes]:
    """Return the versions of the writes that peers were sent."""
    messages = [sent.message for _, sent in cluster.asked]
    return {message.version for message in messages if isinstance(message, Put | Delete)}


def test_topology_learnt_on_the_way_routes_the_same_version_again() -> None:
    cluster = Cluster()
    call = cluster.call()
    sends, began = call.more(cluster.now), cluster.now
    cluster.change(cluster.topology.next())
    cluster.session.install(cluster.topology.encode(), list("abc"))
    assert cluster.run(call, sends).ok  # type: ignore[arg-type]  # the harness drives any call
    assert (versions_of(cluster), cluster.now) == ({call.version}, began)


def test_settings_learnt_on_the_way_stamp_the_write_again() -> None:
    cluster = Cluster()
    call = cluster.call()
    sends, began = call.more(cluster.now), cluster.now
    cluster.set_index(ttl=60_000)
    assert cluster.run(call, sends).ok  # type: ignore[arg-type]  # the harness drives any call
    assert (len(versions_of(cluster)), cluster.now) == (2, began)


def test_peer_suspected_on_the_way_gets_a_hint() -> None:
    cluster = Cluster()
    call = cluster.call()
    sends = [send for send in call.more(cluster.now) if send.peer != "c"]
    cluster.session.suspect("c", cluster.now)
    assert cluster.run(call, sends).ok  # type: ignore[arg-type]  # the harness drives any call
    assert not was_short(call)
    assert any(isinstance(sent.message, Hint) for _, sent in cluster.asked)


def test_clocks_set_since_the_expiry_write_the_value_again() -> None:
    def set_forward(cluster: Cluster) -> None:
        cluster.offsets = dict.fromkeys("abc", 3000)

    cluster = expect_same(set_forward, [("put", "all", 60_000)])
    expiries = {sent.message.expiry for _, sent in cluster.asked if isinstance(sent.message, Put)}
    assert len(expiries) == 2


def test_unread_clocks_are_read_first() -> None:
    def forget(cluster: Cluster) -> None:
        cluster.session._offsets.clear()

    cluster = expect_same(forget, [("put",), ("put",)])
    assert isinstance(cluster.asked[0][1].message, Ping)


def test_replica_that_lost_its_data_makes_no_short_calls() -> None:
    def lose(cluster: Cluster) -> None:
        first, *others = cluster.topology.members
        changed = replace(cluster.topology, members=(replace(first, synced=False), *others))
        cluster.change(replace(changed, epoch=changed.epoch + 1))
        cluster.session.install(cluster.topology.encode(), list("abc"))

    cluster = expect_same(lose, [("put",), ("delete",)])
    call = cluster.call()
    cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
    assert not was_short(call)


def test_topology_change_makes_no_short_calls() -> None:
    cluster = Cluster()
    session = cluster.session
    [targets, *_] = session.write_targets(session.known_view())
    moving = targets._replace(new=targets.new[:2])
    session._write_table = (session.known_view(), [moving] * PARTITIONS)
    call = cluster.call()
    cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
    assert not was_short(call)


def test_suspect_peer_makes_no_short_calls() -> None:
    cluster = expect_same(lambda each: each.session.suspect("b", each.now), [("put",), ("delete",)])
    call = cluster.call()
    cluster.session.suspect("b", cluster.now)
    cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
    assert not was_short(call)


def test_silent_seed_does_not_prevent_short_calls() -> None:
    cluster = Cluster()
    cluster.session.suspect("tcp://elsewhere:1", cluster.now)
    call = cluster.call()
    cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
    assert was_short(call)


def test_removed_member_that_is_suspected_late_does_not_prevent_short_calls() -> None:
    cluster = Cluster()
    cluster.session._suspects["removed"] = cluster.now  # by a thread that had the earlier view
    for is_short in (False, True):
        call = cluster.call()
        cluster.run(call)  # type: ignore[arg-type]  # the harness drives any call
        assert was_short(call) is is_short
        cluster.session.probes(cluster.now)  # as each call does that is not short


def test_lost_connection_hands_the_acks_over() -> None:
    cluster = Cluster()
    call = cluster.call(level="all")
    first, second, third = call.more(cluster.now)
    ack = encode(Envelope(first.correlation, 5, cluster.now, Stored([])))
    assert call.receive_frames(first.peer, ack, cluster.now) == []
    call.lost(second.peer, cluster.now)
    [chunk] = call._continued()._open
    assert chunk._votes.acks == {first.peer}  # type: ignore[attr-defined]
    assert chunk.version == call.version  # type: ignore[attr-defined]
    assert chunk.indeterminate  # type: ignore[attr-defined]
    assert {third.correlation} == call._continued()._pending.keys()


def test_repeated_and_foreign_answers_are_not_counted() -> None:
    cluster = Cluster()
    call = cluster.call(level="all")
    first, second, third = call.more(cluster.now)
    ack = encode(Envelope(first.correlation, 5, cluster.now, Stored([])))
    assert call.receive_frames(first.peer, ack, cluster.now) == []
    assert call.receive_frames(first.peer, ack, cluster.now) is None
    assert call.receive(first.peer, decode(ack), cluster.now) == []
    other = encode(Envelope(second.correlation, 5, cluster.now, Stored([])))
    assert call.receive_frames(third.peer, other, cluster.now) is None
    for frames in ([b"\xc1"], [ack[0], b""], second.frames, encode(Envelope(9, 5, 0, Ping()))):
        assert call.receive_frames(second.peer, frames, cluster.now) is None
    assert not call.done


def test_deadline_without_an_answer_is_an_unknown_outcome() -> None:
    def silence(cluster: Cluster) -> None:
        cluster.silent.update("abc")

    cluster = expect_same(silence, [("put", "quorum", None, 1000)])
    result = cluster.write(timeout=1000)
    assert result.outcomes == {KEY: Outcome.UNKNOWN}


def test_error_of_the_whole_call_is_a_timeout_once_a_replica_may_have_the_write() -> None:
    cluster = Cluster()
    call = cluster.call()
    call.more(cluster.now)
    call.fail(ProtocolError("nonsense"))
    with pytest.raises(DStashError, match="may or may not be stored: nonsense"):
        call.result()


def test_events_after_the_end_change_nothing() -> None:
    cluster = Cluster()
    call = cluster.call()
    sends = call.more(cluster.now)
    for send in sends[:2]:
        ack = encode(Envelope(send.correlation, 5, cluster.now, Stored([])))
        call.receive_frames(send.peer, ack, cluster.now)
    result, waiting = call.result(), cluster.session.outstanding
    hints = call.lost(sends[2].peer, cluster.now)
    assert [type(decode(send.frames).message) for send in hints] == [Hint]
    assert call.unsent(hints[0], cluster.now) == []
    assert (call.result(), call.done, call.hungry) == (result, True, False)
    assert (len(waiting), waiting._bytes) == (0, 0)
