"""Tests of the outcome of a write, and of the class of its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest

from dstash.client.operations.short.write import ShortDelete
from dstash.client.operations.writes import (
    ApplyOperation,
    DeleteOperation,
    PutOperation,
    WriteOperation,
)
from dstash.client.outstanding import OutstandingWrites
from dstash.client.results import BatchResult
from dstash.client.session import HINT_MS
from dstash.errors import (
    DiskFull,
    DStashError,
    LimitError,
    TimedOut,
    Unavailable,
)
from dstash.peer.admission.requests import Reply
from dstash.peer.background.maintenance import Pace
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.store.interface import Store, Write
from dstash.store.memory import TwinStore
from dstash.store.record import VERSION_END, build_record, open_record
from dstash.types import Level, Outcome, RecordFlag
from dstash.version import newest_stamp, pack, with_touch
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Apply, Delete, Put, Stored
from dstash.wire.replication import Hint
from dstash.wire.shapes import Frame
from tests.harness.joined import TYPES, Joined

REPLICAS = "abc"


class Tight(TwinStore):
    """A store whose disk may be full."""

    full = False

    def has_room(self, reserve: int) -> bool:
        """Whether the disk has room."""
        return not self.full


class Cluster(Joined):
    """Three replicas without background repair, each of which may have a fault."""

    def __init__(self, problems: str = "") -> None:
        super().__init__(REPLICAS, pace=Pace(10**9, 10**9, 0))
        self.mute: set[str] = set()
        for peer in REPLICAS:
            store: Store = Tight(f"store-{peer}")
            self.stores[peer] = store  # type: ignore[assignment]
            self.peers[peer].store = self.peers[peer].local_partitions.store = store
        self.put({"k": "before"}, "all")
        self.now += 10
        for peer, problem in zip(REPLICAS, problems, strict=False):
            TROUBLES[problem](self, peer)

    def _answer_each(self, name: str, replies: list[Reply]) -> None:
        if getattr(self, "mute", None) and name in self.mute:
            replies = [reply for reply in replies if reply.to != b"client"]
        super()._answer_each(name, replies)

    def fill(self, *peers: str) -> None:
        """Fill the disks of peers."""
        for peer in peers:
            self.stores[peer].full = True  # type: ignore[attr-defined]

    def write(self, kind: str, level: str = "quorum", timeout: int = 3000) -> BatchResult:
        """Put, delete or touch the existing key."""
        session, deadline = self.session, self.now + timeout
        operation: WriteOperation
        if kind == "put":
            items: list[Any] = [("k", b"k", TYPES.encode("after"))]
            operation = PutOperation(session, deadline, "i", Level(level), items, None)
        elif kind == "delete":
            operation = DeleteOperation(session, deadline, "i", Level(level), [("k", b"k", b"")])
        else:
            items = [("k", b"k", self.touched("k"))]
            operation = ApplyOperation(session, deadline, "i", Level(level), items)
        result: BatchResult = self.run(operation)
        return result

    def touched(self, key: str) -> bytes:
        """Return a record that expires in a minute."""
        records = [self.record(peer, key) for peer in REPLICAS]
        record = open_record(next(record for record in records if record is not None))
        version = with_touch(record.version, self.session.stamp())
        renewed = record._replace(version=version, expiry=self.now + 60_000)
        return build_record(b"i", key.encode(), renewed)

    def holders(self, kind: str) -> set[str]:
        """Return the replicas that stored the write."""
        return {peer for peer in REPLICAS if WRITTEN[kind](self.record(peer, "k") or b"")}


def _corrupt(cluster: Cluster, peer: str) -> None:
    cluster.corruption(peer, "k")


#: One letter each: ok, down, silent, mute (its acks are lost), not ready, full,
#: corrupt (its record is corrupt).
TROUBLES: dict[str, Callable[[Cluster, str], None]] = {
    "o": lambda cluster, peer: None,
    "d": lambda cluster, peer: cluster.down.add(peer),
    "s": lambda cluster, peer: cluster.silent.add(peer),
    "m": lambda cluster, peer: cluster.mute.add(peer),
    "n": lambda cluster, peer: setattr(
        cluster.peers[peer].health, "not_ready", "the peer is starting"
    ),
    "f": lambda cluster, peer: cluster.fill(peer),
    "c": _corrupt,
}
WRITTEN: dict[str, Callable[[bytes], bool]] = {
    "put": lambda record: bool(record) and open_record(record).payload == TYPES.encode("after"),
    "delete": lambda record: bool(record) and open_record(record).is_tombstone,
    "touch": lambda record: bool(record) and open_record(record).expiry != 0,
}


@pytest.mark.parametrize("kind", list(WRITTEN))
@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_outcome_matches_the_stores_and_the_class_of_its_error(kind: str, level: str) -> None:
    seen = set()
    for problems in map("".join, combinations_with_replacement(TROUBLES, 3)):
        cluster = Cluster(problems)
        result = cluster.write(kind, level)
        outcome = result.outcomes.get("k", Outcome.STORED)
        holders = cluster.holders(kind)
        seen.add(outcome)
        if outcome is Outcome.STORED:
            assert len(holders) >= Level(level).needed(3), problems
            assert result.reasons == [], problems
        elif outcome is Outcome.FAILED:
            assert not holders, problems
            assert not isinstance(result.reasons[0], TimedOut), problems
        else:
            assert isinstance(result.reasons[0], TimedOut), problems
            assert "may or may not be stored" in str(result.reasons[0]), problems
    assert seen == {Outcome.STORED, Outcome.FAILED, Outcome.UNKNOWN}


class TestFullDisks:
    @pytest.mark.parametrize("full", [*"abc"])
    def test_one_full_disk_does_not_count_as_an_ack_of_a_touch(self, full: str) -> None:
        cluster = Cluster()
        cluster.fill(full)
        assert cluster.write("touch").ok
        assert cluster.holders("touch") == set(REPLICAS) - {full}
        hints = [
            request.message for _, request in cluster.asked if isinstance(request.message, Hint)
        ]
        assert [hint.peer for hint in hints] == [full], "c answers after the call is done"

    def test_touch_with_two_full_disks_is_unknown_and_names_the_reason(self) -> None:
        cluster = Cluster()
        cluster.fill("a", "b")
        result = cluster.write("touch")
        assert result.outcomes == {"k": Outcome.UNKNOWN}
        with pytest.raises(TimedOut, match="may or may not be stored: a, b: the disk is full"):
            result.raise_first()

    @pytest.mark.parametrize("kind", ["put", "touch"])
    def test_write_with_three_full_disks_raises_disk_full(self, kind: str) -> None:
        cluster = Cluster()
        cluster.fill(*REPLICAS)
        began = cluster.now
        result = cluster.write(kind)
        assert result.outcomes == {"k": Outcome.FAILED}
        assert isinstance(result.reasons[0], DiskFull)
        assert cluster.now == began, "it cannot come right, so it is not tried again"

    def test_batch_stores_items_that_replicas_accept(self) -> None:
        cluster = Cluster()
        cluster.put({"l": "before"}, "all")
        items = [(key, key.encode(), cluster.touched(key)) for key in "kl"]
        for peer in "ab":
            cluster.corruption(peer, "k")  # so they refuse its record while they have no majority
        operation = ApplyOperation(cluster.session, cluster.now + 2000, "i", Level.QUORUM, items)
        result = cluster.run(operation)
        assert result.stored == 1
        assert result.outcomes == {"k": Outcome.UNKNOWN}
        applies = [
            request.message for _, request in cluster.asked if isinstance(request.message, Apply)
        ]
        assert len(applies) > 3, "the item was tried again"


def delete_later(cluster: Cluster, peer: str) -> None:
    """Apply the delete of another client, with a higher stamp, to one replica."""
    record = open_record(cluster.record(peer, "k") or b"")
    version = pack(newest_stamp(record.version) + (100 << 16), b"othr")
    tombstone = record._replace(version=version, flags=RecordFlag.TOMBSTONE, payload=b"")
    entries = [(cluster.place("k"), build_record(b"i", b"k", tombstone))]
    cluster.stores[peer].commit([Write(entries, cluster.now, newest_stamp(version))])


def delete_of(cluster: Cluster, level: str, *, is_short: bool) -> Any:
    """Return the call that deletes the key."""
    deadline, item = cluster.now + 3000, ("k", b"k", b"")
    if is_short:
        return ShortDelete(cluster.session, deadline, "i", Level(level), item)
    return DeleteOperation(cluster.session, deadline, "i", Level(level), [item])


def with_flipped_tombstone(record: bytes) -> bytes:
    """Return a corrupt record: if it was live, it looks deleted, and the reverse."""
    flags = record[VERSION_END] ^ RecordFlag.TOMBSTONE
    return record[:VERSION_END] + bytes((flags,)) + record[VERSION_END + 1 :]


class TestDelete:
    def test_acks_of_the_first_try_are_lost_with_the_connections(self) -> None:
        cluster = Cluster("mmd")
        operation = DeleteOperation(
            cluster.session, cluster.now + 5000, "i", Level.QUORUM, [("k", b"k", b"")]
        )
        sends = list(operation.more(cluster.now))
        sends = [again for send in sends for again in cluster._deliver(operation, send)]
        cluster.mute.clear()
        sends += operation.lost("a", cluster.now) + operation.lost("b", cluster.now)
        assert cluster.run(operation, sends).deleted == 1

    def test_rerouted_delete_keeps_result_of_first_attempt(self) -> None:
        cluster = Cluster("oos")
        operation = DeleteOperation(
            cluster.session, cluster.now + 5000, "i", Level.ALL, [("k", b"k", b"")]
        )
        for send in operation.more(cluster.now):
            cluster._deliver(operation, send)
        while cluster._answers:
            name, frames = cluster._answers.popleft()
            operation.receive(name, decode(frames), cluster.now)
        newer = replace(cluster.topology, epoch=9)
        cluster.install(newer)
        cluster.session.install(newer.encode(), list(REPLICAS))
        cluster.silent.clear()
        cluster.forget("c", "k")
        for core in cluster.peers.values():
            core.group_commit.recent_deletes = RecentDeletes()  # as after a restart
        assert cluster.run(operation, operation.lost("c", cluster.now)).deleted == 1

    def test_superseded_delete_keeps_result_of_first_attempt(self) -> None:
        cluster = Cluster("ood")
        delete_later(cluster, "b")
        assert cluster.write("delete").deleted == 1

    def test_replica_repeats_result_of_first_version_of_a_delete(self) -> None:
        cluster = Cluster("moo")
        delete_later(cluster, "b")
        cluster.forget("c", "k")

        def hear_second(peer: str, envelope: Envelope) -> Envelope:
            if isinstance(envelope.message, Delete) and envelope.message.replaces:
                cluster.mute.clear()
                cluster.down.add("c")
            return envelope

        cluster.tamper = hear_second
        assert cluster.write("delete").deleted == 1

    @pytest.mark.parametrize("problems", ["ooo", "ood", "odd", "oss"])
    @pytest.mark.parametrize("before", ["live", "tombstone"])
    def test_replica_with_corrupt_record_leaves_to_others_whether_key_existed(
        self, problems: str, before: str
    ) -> None:
        cluster = Cluster(problems)
        if before == "tombstone":
            cluster = Cluster()
            cluster.delete("k", "all")
            for peer, problem in zip(REPLICAS, problems, strict=True):
                TROUBLES[problem](cluster, peer)
        cluster.alter("a", "k", with_flipped_tombstone)
        result = cluster.write("delete", "one")
        assert (result.ok, result.stored) == (True, 1)
        is_known = "o" in problems[1:]
        assert result.deleted == (0 if is_known and before == "tombstone" else 1)

    def test_delete_below_corrupt_record_is_stored_at_its_deadline(self) -> None:
        """The answer of another replica would only show whether the key existed."""
        cluster = Cluster("oss")
        cluster.alter("a", "k", with_flipped_tombstone)
        result = cluster.write("delete", "one", timeout=500)
        assert (result.stored, result.deleted, result.outcomes) == (1, 1, {})

    def test_replica_repeats_answer_that_record_was_corrupt(self) -> None:
        cluster = Cluster("mdd")
        cluster.alter("a", "k", with_flipped_tombstone)
        operation = DeleteOperation(
            cluster.session, cluster.now + 5000, "i", Level.ONE, [("k", b"k", b"")]
        )
        sends = list(operation.more(cluster.now))
        sends = [again for send in sends for again in cluster._deliver(operation, send)]
        cluster.mute.clear()
        assert cluster.run(operation, operation.lost("a", cluster.now)).deleted == 1

    @pytest.mark.parametrize("is_short", [True, False])
    @pytest.mark.parametrize("level", ["one", "quorum"])
    def test_delete_overtaken_by_later_put_of_the_client_found_the_key(
        self, level: str, *, is_short: bool
    ) -> None:
        cluster = Cluster()
        operation = delete_of(cluster, level, is_short=is_short)
        sends = operation.more(cluster.now)
        cluster.put({"k": "later"}, "all")
        began = cluster.now
        result = cluster.run(operation, sends)
        assert (result.stored, result.deleted, cluster.now) == (1, 1, began)
        assert cluster.lookup("k", level="all") == {"k": "later"}

    @pytest.mark.parametrize("is_short", [True, False])
    @pytest.mark.parametrize(("before", "deleted"), [("live", 1), ("tombstone", 0)])
    def test_replica_that_delete_reached_in_time_knows_whether_key_existed(
        self, before: str, deleted: int, *, is_short: bool
    ) -> None:
        cluster = Cluster()
        if before == "tombstone":
            cluster.delete("k", level="all")
        operation = delete_of(cluster, "one", is_short=is_short)
        sends = operation.more(cluster.now)
        cluster.silent.update("bc")
        cluster.put({"k": "later"}, "one")
        cluster.silent.clear()
        result = cluster.run(operation, sends)
        assert (result.stored, result.deleted) == (1, deleted)

    def test_batch_delete_counts_keys_that_later_put_overtook(self) -> None:
        cluster = Cluster()
        cluster.put({"l": "before"}, "all")
        items: list[Any] = [(key, key.encode(), b"") for key in ("k", "l", "missing")]
        operation = DeleteOperation(cluster.session, cluster.now + 3000, "i", Level.ONE, items)
        sends = operation.more(cluster.now)
        cluster.put({"k": "later"}, "all")
        result = cluster.run(operation, sends)
        assert (result.stored, result.deleted) == (3, 2)

    def test_overtaken_delete_that_is_stamped_again_waits_for_no_answer(self) -> None:
        cluster = Cluster()
        operation = delete_of(cluster, "quorum", is_short=False)
        sends = operation.more(cluster.now)
        cluster.silent.update("bc")
        cluster.put({"k": "later"}, "one")
        cluster.silent.discard("b")
        delete_later(cluster, "b")
        began = cluster.now
        result = cluster.run(operation, sends)
        assert (result.stored, result.deleted, cluster.now) == (1, 1, began)

    def test_delete_of_missing_key_is_not_counted(self) -> None:
        assert Cluster().delete("other").deleted == 0

    def test_second_delete_finds_nothing(self) -> None:
        cluster = Cluster()
        assert (cluster.delete("k").deleted, cluster.delete("k").deleted) == (1, 0)


def test_late_message_of_a_write_does_not_undo_a_later_write_of_the_client() -> None:
    cluster = Cluster()
    deadline = cluster.now + 3000
    items: list[Any] = [("k", b"k", TYPES.encode("first"))]
    first = PutOperation(cluster.session, deadline, "i", Level.QUORUM, items, None)
    messages = first.more(cluster.now)
    cluster.put({"k": "second"})
    result: BatchResult = cluster.run(first, messages)
    assert result.ok
    assert cluster.lookup("k") == {"k": "second"}


def test_write_stored_by_one_replica_is_not_unavailable() -> None:
    cluster = Cluster("onn")
    result = cluster.write("put", timeout=2000)
    assert result.outcomes == {"k": Outcome.UNKNOWN}
    with pytest.raises(TimedOut, match=r"may or may not be stored.*b: the peer is starting"):
        result.raise_first()


def test_temporary_refusal_is_retried_until_stored() -> None:
    cluster = Cluster("fff")
    full = iter([True, True, False])

    def free_later(peer: str, envelope: Envelope) -> Envelope:
        if peer == "c":
            for peer in "ab":
                cluster.stores[peer].full = next(full, False)  # type: ignore[attr-defined]
        return envelope

    def busy(envelope: Envelope) -> Envelope:
        message = envelope.message
        if isinstance(message, Stored) and message.rejected:
            rejected = [[place, 26, "come back"] for place, _, _ in message.rejected]  # Busy
            message = Stored(rejected, message.existed)
        return envelope._replace(message=message)

    cluster.tamper, cluster.tamper_answer = free_later, busy
    assert cluster.write("touch").ok
    assert cluster.holders("touch") >= {"a", "b"}


def test_too_long_key_fails_at_once_and_alone() -> None:
    cluster = Cluster()
    long = "x" * 401
    payload = TYPES.encode(1)
    items: list[Any] = [("n", b"n", payload), (long, long.encode(), payload)]
    began = cluster.now
    result = cluster.run(
        PutOperation(cluster.session, began + 3000, "i", Level.QUORUM, items, None)
    )
    assert result.stored == 1
    assert result.outcomes == {long: Outcome.FAILED}
    assert isinstance(result.reasons[0], LimitError)
    assert cluster.now == began
    assert len([request for _, request in cluster.asked if isinstance(request.message, Put)]) == 6


def test_call_with_other_error_reports_that_it_may_be_stored() -> None:
    """A reply from a peer of another cluster ends the whole call."""
    cluster = Cluster()
    operation = PutOperation(
        cluster.session, cluster.now + 100, "i", Level.ALL, [("k", b"k", b"\x01")], None
    )
    operation.more(cluster.now)
    operation.fail(DStashError("another cluster"))
    with pytest.raises(TimedOut, match="may or may not be stored: another cluster"):
        operation.result()


def test_call_that_sent_nothing_raises_the_error_itself() -> None:
    cluster = Cluster()
    items: list[Any] = [("k", b"k", b"\x01")]
    operation = PutOperation(cluster.session, cluster.now + 100, "i", Level.ALL, items, None)
    operation.fail(Unavailable("no peer"))
    with pytest.raises(Unavailable, match="no peer"):
        operation.result()


class TestLateAnswers:
    """A replica that answers, or fails to answer, after the call has returned."""

    def hinted(self, cluster: Cluster) -> set[tuple[str, bytes]]:
        """Return (peer, keys) of the hints sent since the last call."""
        sent = [envelope.message for _, envelope in cluster.asked]
        cluster.asked.clear()
        hints = [message for message in sent if isinstance(message, Hint)]
        return {(hint.peer, key) for hint in hints for key in codec.unpack_keys(hint.keys)}

    @pytest.mark.parametrize("problem", ["n", "f"])
    def test_refusal_becomes_a_hint(self, problem: str) -> None:
        cluster = Cluster("oo" + problem)
        assert cluster.write("put").ok
        assert self.hinted(cluster) == {("c", b"k")}
        assert len(cluster.session.outstanding) == 0

    def test_hint_outlives_the_deadline_of_the_call(self) -> None:
        cluster = Cluster("oon")
        assert cluster.write("put", timeout=100).ok
        [hint] = [envelope for _, envelope in cluster.asked if isinstance(envelope.message, Hint)]
        assert hint.moment == cluster.now + HINT_MS

    def test_refusal_of_one_item_becomes_a_hint_for_it(self) -> None:
        cluster = Cluster()
        cluster.put({"l": "before"}, "all")
        cluster.corruption("c", "k")
        items = [(key, key.encode(), cluster.touched(key)) for key in "kl"]
        deadline = cluster.now + 2000
        cluster.run(ApplyOperation(cluster.session, deadline, "i", Level.QUORUM, items))
        cluster.lookup("other")
        assert self.hinted(cluster) == {("c", b"k")}

    def test_missing_reply_becomes_a_hint_after_some_seconds(self) -> None:
        cluster = Cluster("oos")
        assert cluster.write("put").ok
        cluster.silent.clear()
        cluster.lookup("other", level="one")
        assert self.hinted(cluster) == set()
        cluster.now += 3001
        cluster.lookup("other", level="one")
        assert self.hinted(cluster) == {("c", b"k")}

    def test_lost_connection_becomes_a_hint(self) -> None:
        cluster = Cluster("oos")
        assert cluster.write("put").ok
        operation = DeleteOperation(
            cluster.session, cluster.now + 5000, "i", Level.ONE, [("m", b"m", b"")]
        )
        hints = operation.lost("c", cluster.now)
        assert [decode(send.frames).message for send in hints] == [
            Hint("i", "c", Frame(codec.pack_blobs([b"k"])))
        ]
        assert hints[0].peer in "ab"

    def test_acked_request_is_dropped(self) -> None:
        cluster = Cluster()
        assert cluster.write("put").ok
        assert len(cluster.session.outstanding) == 0
        assert self.hinted(cluster) == set()

    def test_outstanding_writes_are_bounded_and_the_oldest_becomes_a_hint(self) -> None:
        outstanding = OutstandingWrites()
        keys = Frame(codec.pack_blobs([bytes(300)] * 1000))
        missed = []
        for number in range(100):
            missed += outstanding.add([(number, "c")], "i", keys, ("a",), number)
        assert len(outstanding) * len(keys) <= 4 * 1024 * 1024
        assert len(missed) == 100 - len(outstanding)
