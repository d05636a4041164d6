"""The core of a peer: replies, refusals, dropped messages and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.replication.partitions import BUSY_MS
from dstash.cluster.replication.tasks import Merge, Task
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import (
    BelowFloor,
    Busy,
    ClockSkew,
    CorruptRecord,
    DeadlinePassed,
    Forming,
    LimitError,
    Misrouted,
    NotReady,
    ProtocolError,
    StaleEpoch,
    Unauthorised,
    UsageError,
    VersionMismatch,
    WrongCluster,
)
from dstash.limits import PARTITIONS
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from dstash.store.record import Keyspace, head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.version import newest_stamp, pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import (
    AdminReply,
    AdminRequest,
    Apply,
    Count,
    Delete,
    Error,
    Fetch,
    Hello,
    Lookup,
    Page,
    Ping,
    Pong,
    Put,
    Records,
    Scan,
    ScanKeys,
    StatusReply,
    StatusRequest,
    Stored,
    TopologyReply,
    TopologyRequest,
    Values,
    Want,
    Welcome,
)
from dstash.wire.packing import BUSY, pack_partitions, split_counts
from dstash.wire.replication import (
    CopyReply,
    CopyRequest,
    DigestsReply,
    DigestsRequest,
    Hint,
    Push,
    SeenReply,
    SeenRequest,
)
from dstash.wire.shapes import Frame, Message

START = 1_700_000_000_000
EPOCH = 5
EVERYWHERE = b"".join(number.to_bytes(2, "big") for number in range(PARTITIONS))


def topology(
    names: str = "a", *, epoch: int = EPOCH, replicas: int = 3, least: int = 1
) -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("c", "id", epoch, replicas, least, formed=len(names) >= least, members=members)


class Peer:
    """A core that is driven like in the server."""

    def __init__(self, view: Topology | None = None, **settings: Any) -> None:
        self.store = TwinStore()
        self.core = PeerCore(Settings("a", "c", **settings), self.store, START)
        self.core.health.not_ready = None
        self.now = START + 1000
        if view is not None:
            self.core.install(View(view, frozenset(member.id for member in view.members)), self.now)
            self.iterate()

    def iterate(self) -> list[Message]:
        replies = []
        for _ in range(20):
            ticked, _ = self.core.tick(self.now)
            replies += ticked
            while (commit := self.core.next_commit(self.now)) is not None:
                commit.run(self.store)
                replies += self.core.committed(commit, self.now)
        return [decode(reply.frames).message for reply in replies]

    def ask(self, message: Message, *, epoch: int = EPOCH, deadline: int = 0) -> Message | None:
        envelope = Envelope(7, epoch, deadline, message)
        replies = self.core.receive(b"client", encode(envelope), self.now)
        answers = [decode(reply.frames).message for reply in replies] + self.iterate()
        assert len(answers) <= 1
        return answers[0] if answers else None

    def refusal(self, message: Message, **surroundings: int) -> Any:
        answer = self.ask(message, **surroundings)
        assert isinstance(answer, Error), answer
        return answer.error()


@pytest.fixture
def peer() -> Peer:
    return Peer(topology())


def keys(*some: bytes) -> Frame:
    return Frame(codec.pack_blobs(some))


def version(milliseconds: int = START + 1000) -> bytes:
    return pack(stamp_at(milliseconds), b"abcd")


def put(*some: bytes, value: bytes = b"\x01", at: int = START + 1000, expiry: int = 0) -> Put:
    payloads = Frame(codec.pack_blobs([value] * len(some)))
    return Put("i", version(at), expiry, keys(*some), payloads)


def found(peer: Peer, *some: bytes) -> list[Any]:
    answer = peer.ask(Lookup("i", 1, keys(*some)))
    assert isinstance(answer, Values)
    values: list[Any] = msgpack.unpackb(answer.values)
    return ["missing" if place in answer.missing else value for place, value in enumerate(values)]


def test_keyspace_is_computed_once_per_topology(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Counter[bytes] = Counter()

    def make(index: bytes, owned: frozenset[int]) -> Keyspace:
        made[index] += 1
        return keyspace(index, owned)

    monkeypatch.setattr("dstash.peer.keyspaces.keyspace", make)
    peer = Peer(topology())
    for epoch in (EPOCH, EPOCH + 1):
        peer.core.install(View(topology(epoch=epoch), frozenset("a")), peer.now)
        for index in "ijij":
            peer.ask(Lookup(index, 1, keys(b"k")), epoch=epoch)
    assert made == {b"i": 2, b"j": 2}
    for number in range(200):
        peer.ask(Lookup(f"n{number}", 1, keys(b"k")), epoch=EPOCH + 1)
    assert len(peer.core.keyspaces) <= 32


def test_full_disk_is_reported_by_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(topology(), disk_reserve=7)
    assert peer.core.health.status()["ready"]
    monkeypatch.setattr(peer.store, "has_room", lambda reserve: reserve != 7)
    assert peer.core.health.why_not_ready() == "the disk is full; puts are refused"
    assert peer.ask(Lookup("i", 1, keys(b"k"))), "reads succeed"


class TestReplies:
    def test_peer_that_lost_its_data_does_not_know_which_keys_existed(self) -> None:
        whole = topology("abc")
        first, *others = whole.members
        peer = Peer(replace(whole, members=(replace(first, synced=False), *others)))
        assert peer.ask(put(b"here", at=START + 1001)) == Stored([])
        stored = peer.ask(Delete("i", version(START + 1002), keys(b"here", b"gone")))
        assert stored == Stored([], b"\1\0", b"\0\1")

    def test_put_is_acked_after_its_commit(self, peer: Peer) -> None:
        envelope = Envelope(7, EPOCH, 0, put(b"k", b"l"))
        assert peer.core.receive(b"client", encode(envelope), peer.now) == []
        assert peer.core.has_work
        assert peer.iterate() == [Stored([])]
        assert not peer.core.has_work
        assert found(peer, b"k", b"m", b"l") == [1, "missing", 1]

    def test_pending_puts_share_one_commit(self, peer: Peer) -> None:
        for number in range(10):
            envelope = Envelope(number, EPOCH, 0, put(b"%d" % number))
            peer.core.receive(b"client", encode(envelope), peer.now)
        commits = peer.core.health.counts["commits"]
        assert peer.iterate() == [Stored([])] * 10
        assert peer.core.health.counts["commits"] == commits + 1

    def test_delete_reports_which_keys_existed(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        later = version(peer.now + 1)
        assert peer.ask(Delete("i", later, keys(b"k", b"l"))) == Stored([], b"\x01\x00")
        assert found(peer, b"k") == ["missing"]

    def test_superseded_put_reports_the_winning_version(self, peer: Peer) -> None:
        peer.ask(put(b"k", at=peer.now + 9))
        answer = peer.ask(put(b"k", b"l", value=b"\x02"))
        assert answer == Stored([[0, 0, version(peer.now + 9)]])
        assert found(peer, b"k", b"l") == [1, 2]

    def test_expired_record_is_missing(self, peer: Peer) -> None:
        peer.ask(put(b"k", expiry=peer.now + 50))
        assert found(peer, b"k") == [1]
        peer.now += 50
        assert found(peer, b"k") == ["missing"]
        assert peer.ask(Count("i", b"", EVERYWHERE, b"", 10, 10**6)).count == 0  # type: ignore[union-attr]

    def test_fetched_record_can_be_applied_to_another_peer(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        answer = peer.ask(Fetch("i", keys(b"k", b"l")))
        assert isinstance(answer, Records)
        record, nothing = codec.unpack_optional_blobs(answer.records)
        assert nothing is None
        other = Peer(topology())
        assert record is not None
        assert other.ask(Apply("i", keys(b"k"), keys(record))) == Stored([])
        assert found(other, b"k") == [1]

    def test_corrupt_record_is_reported_and_not_returned(self, peer: Peer) -> None:
        peer.ask(put(b"k", b"l"))
        place = next(key for key in peer.store.records if key.endswith(b"k"))
        peer.store.records[place] = peer.store.records[place][:-1] + b"\x02"
        answer = peer.ask(Lookup("i", 1, keys(b"k", b"l")))
        assert isinstance(answer, Values)
        assert answer.corrupt == [0]
        fetched = peer.ask(Fetch("i", keys(b"k", b"l")))
        assert isinstance(fetched, Records)
        assert fetched.corrupt == [0]
        assert codec.unpack_optional_blobs(fetched.records)[0] is None
        assert peer.core.health.status()["maintenance"]["corrupt"] == 1

    def test_newer_replacement_moves_the_high_water_mark(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        place, record = next(iter(peer.store.records.items()))
        peer.store.records[place] = record[:-1] + b"\x02"
        space = keyspace(b"i", frozenset(range(PARTITIONS)))
        newer = version(peer.now + 300)
        [(_, replacement)] = seal(space, [b"k"], head(newer), [b"\x03"])

        def repair() -> Task:
            yield Merge(replacements=[(place, replacement)])

        peer.core.scheduler.spawn("repair", repair())
        peer.iterate()
        assert peer.store.records[place] == replacement
        assert peer.store.high_water == newest_stamp(newer)

    def test_started_peer_has_no_overdue_comparison(self, peer: Peer) -> None:
        assert set(peer.core.local_partitions.compared_at("b", peer.now)) == {peer.now}

    def test_partitions_are_busy_while_missed_records_are_pushed(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        place, record = next(iter(peer.store.records.items()))
        question = DigestsRequest(pack_partitions(range(8)), skip_busy=True)
        peer.now += BUSY_MS
        before = peer.ask(question)
        assert isinstance(before, DigestsReply)
        assert before.busy == bytes(8)
        assert peer.ask(Push(keys(place), keys(record))) == Stored([])
        after = peer.ask(question)
        assert isinstance(after, DigestsReply)
        assert after.busy == bytes([BUSY]) * 8

    def test_push_of_a_comparison_does_not_make_other_partitions_busy(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        place, record = next(iter(peer.store.records.items()))
        peer.now += BUSY_MS
        assert peer.ask(Push(keys(place), keys(record), compared=True)) == Stored([])
        after = peer.ask(DigestsRequest(pack_partitions(range(8)), skip_busy=True))
        assert isinstance(after, DigestsReply)
        assert after.busy == bytes(8)

    def test_digests_request_with_skip_all_returns_only_horizons(self, peer: Peer) -> None:
        peer.ask(put(b"k"))
        partition = partition_of(b"k")
        peer.core.local_partitions.horizons[partition] = 7
        packed = pack_partitions([partition, partition + 1])
        reply = peer.ask(DigestsRequest(packed, skip_all=True))
        assert isinstance(reply, DigestsReply)
        assert reply.digests == bytes(32), "no record was read"
        assert split_counts(reply.counts, 2) == [1, 0]
        assert reply.horizons == (7).to_bytes(8, "big") + bytes(8)
        whole = peer.ask(DigestsRequest(packed))
        assert isinstance(whole, DigestsReply)
        assert whole.digests[:16] != bytes(16)

    def test_page_ends_before_corrupt_record(self, peer: Peer) -> None:
        peer.ask(put(*(b"%d" % number for number in range(60))))
        order = sorted(peer.store.records)
        place = order[40]
        peer.store.records[place] = peer.store.records[place][:-1] + b"\x02"
        page = peer.ask(ScanKeys("i", b"", EVERYWHERE, b"", 100, 10**6))
        assert isinstance(page, Page)
        assert codec.unpack_keys(page.keys) == [key[4:] for key in order[:40]]
        rest = ScanKeys("i", b"", EVERYWHERE[2 * page.done :], page.after, 100, 10**6)
        assert isinstance(peer.refusal(rest), CorruptRecord)

    @pytest.mark.parametrize("length", [0, 8, 28, 36])
    def test_truncated_record_is_handled_and_replaced(self, peer: Peer, length: int) -> None:
        peer.ask(put(b"k"))
        place = next(iter(peer.store.records))
        peer.store.records[place] = peer.store.records[place][:length]
        for want in (0, 1, 2, 3):
            assert isinstance(peer.ask(Lookup("i", want, keys(b"k"))), Values)
        assert isinstance(peer.ask(Fetch("i", keys(b"k"))), Records)
        assert isinstance(peer.ask(Scan("i", b"", EVERYWHERE, b"", 10, 10**6)), Page)
        answer = peer.ask(put(b"k", at=peer.now - 1))
        assert isinstance(answer, Stored)
        [[_, code, highest]] = answer.rejected
        assert code == 0, "it may have been the newest record of the key"
        newer = pack(newest_stamp(highest) + 1, b"test")
        assert peer.ask(replace(put(b"k"), version=newer)) == Stored([])
        assert found(peer, b"k") == [1]

    def test_scan_returns_every_key_once_for_any_page_size(self, peer: Peer) -> None:
        some = [b"%d" % number for number in range(60)]
        peer.ask(put(*some))
        for size in (1, 7, 1000):
            met: list[bytes] = []
            partitions, after = EVERYWHERE, b""
            while partitions:
                page = peer.ask(Scan("i", b"", partitions, after, size, 10**6))
                assert isinstance(page, Page)
                got = codec.unpack_keys(page.keys)
                assert len(msgpack.unpackb(page.values)) == len(got) == page.count <= size
                met += got
                partitions, after = partitions[2 * page.done :], page.after
            assert sorted(met) == sorted(some)

    def test_status_requests_are_answered_in_any_state(self) -> None:
        waiting = Peer(topology(least=3))
        assert isinstance(waiting.ask(Hello(), epoch=0), Welcome)
        assert waiting.ask(Ping(), epoch=0) == Pong()
        reply = waiting.ask(TopologyRequest(), epoch=0)
        assert isinstance(reply, TopologyReply)
        assert reply.is_kept
        status = waiting.ask(StatusRequest(), epoch=0)
        assert isinstance(status, StatusReply)
        assert not status.status["ready"]

    def test_topology_that_is_not_on_disk_is_reported_until_it_is(self) -> None:
        peer = Peer(topology())
        view = peer.core.view
        assert view is not None
        for is_kept in (False, True):
            peer.core.install(replace(view, is_kept=is_kept), START)
            assert peer.ask(TopologyRequest()) == TopologyReply(
                view.topology.encode(), sorted(view.alive), is_kept
            )


class TestRefusals:
    @pytest.mark.parametrize("make", [put, lambda key: Lookup("i", 1, keys(key))])
    def test_request_before_joining_or_while_stopping_is_refused(
        self, make: Callable[..., Message]
    ) -> None:
        peer = Peer()
        assert isinstance(peer.refusal(make(b"k")), NotReady)
        peer = Peer(topology())
        peer.core.health.stopping = True
        assert isinstance(peer.refusal(make(b"k")), NotReady)
        assert "stopping" in str(peer.refusal(make(b"k")))

    def test_request_below_min_peers_is_refused(self) -> None:
        error = Peer(topology(least=3)).refusal(put(b"k"))
        assert isinstance(error, Forming)
        assert "1 of at least 3 peers (min_peers)" in str(error)

    def test_request_of_old_epoch_is_refused_with_new_topology(self, peer: Peer) -> None:
        error = peer.refusal(put(b"k"), epoch=EPOCH - 1)
        assert isinstance(error, StaleEpoch)
        assert Topology.decode(error.details["topology"]) == topology()

    def test_request_of_another_cluster_is_refused(self, peer: Peer) -> None:
        assert isinstance(peer.refusal(Hello("other"), epoch=0), WrongCluster)

    def test_request_for_key_of_another_peer_is_refused(self) -> None:
        seen = View(topology("abc", replicas=1))
        peer = Peer(seen.topology)
        number = next(n for n, row in enumerate(seen.readers) if row != ("a",))
        key = next(k for k in (b"%d" % n for n in range(10**6)) if partition_of(k) == number)
        for message in (
            put(key),
            Lookup("i", 1, keys(key)),
            Fetch("i", keys(key)),
            Delete("i", version(), keys(key)),
            Scan("i", b"", number.to_bytes(2, "big"), b"", 9, 9),
        ):
            error = peer.refusal(message)
            assert isinstance(error, Misrouted | NotReady)

    @pytest.mark.parametrize(
        "message",
        [
            replace(put(b"k"), index="@i"),
            Delete("@i", version(), keys(b"k")),
            Apply("@i", keys(b"k"), keys(b"record")),
            Hint("@i", "a", keys(b"k")),
            replace(put(b"k"), index="@"),
        ],
    )
    def test_write_to_index_reserved_for_registers_is_refused(
        self, peer: Peer, message: Put | Delete | Apply | Hint
    ) -> None:
        error = peer.refusal(message)
        assert isinstance(error, UsageError)
        assert f"index {message.index!r} has registers" in str(error)
        assert "another name" in str(error)
        assert peer.store.records == {}

    def test_index_reserved_for_registers_can_be_read(self, peer: Peer) -> None:
        answer = peer.ask(Lookup("@i", 1, keys(b"k")))
        assert isinstance(answer, Values)
        assert answer.missing == [0]
        assert isinstance(peer.ask(Count("@i", b"", EVERYWHERE, b"", 10, 1000)), Page)

    @pytest.mark.parametrize(
        "message", [Fetch("@i", keys(b"k")), Lookup("@i", Want.DIGEST, keys(b"k"))]
    )
    def test_replicas_of_registers_are_not_compared(
        self, peer: Peer, message: Fetch | Lookup
    ) -> None:
        error = peer.refusal(message)
        assert isinstance(error, UsageError)
        assert "it is read by Settle, or at level one" in str(error)

    def test_version_from_the_future_is_refused_with_difference(self, peer: Peer) -> None:
        peer.ask(put(b"k", at=peer.now + 500))
        error = peer.refusal(put(b"k", at=peer.now + 501))
        assert isinstance(error, ClockSkew)
        assert "501 ms ahead" in str(error)
        assert "allowed are 500 ms" in str(error)
        assert error.details == {"ahead_ms": 501}

    def test_version_from_before_the_start_is_refused(self, peer: Peer) -> None:
        error = peer.refusal(put(b"k", at=START))
        assert isinstance(error, BelowFloor)
        assert error.details["floor"] >= stamp_at(START)

    def test_overloaded_peer_is_busy_with_retry_after(self) -> None:
        peer = Peer(topology(), max_waiting_bytes=1000)
        large = put(b"k", value=b"\xc5\x02\x00" + bytes(512))
        answers = []
        for number in range(3):
            frames = encode(Envelope(number, EPOCH, 0, large))
            answers += peer.core.receive(b"client", frames, peer.now)
        [reply] = [decode(answer.frames).message for answer in answers][:1]
        assert isinstance(reply, Error)
        assert isinstance(reply.error(), Busy)
        assert reply.error().details["retry_after_ms"] > 0
        assert Stored([]) in peer.iterate()
        assert peer.ask(large) == Stored([])

    def test_invalid_item_fails_alone(self, peer: Peer) -> None:
        payloads = Frame(codec.pack_blobs([b"\x01", b"\xa5cut", b"\x02", b"\x01\x02"]))
        some = keys(b"good", b"cut", b"x" * 400, b"two")
        answer = peer.ask(Put("i", version(), 0, some, payloads))
        assert isinstance(answer, Stored)
        assert [(place, code) for place, code, _ in answer.rejected] == [
            (1, ProtocolError.code),
            (3, ProtocolError.code),
        ]
        assert found(peer, b"good", b"cut", b"x" * 400, b"two") == [1, "missing", 2, "missing"]

    def test_key_beyond_the_limits_fails_alone(self, peer: Peer) -> None:
        answer = peer.ask(put(b"good", b"", b"x" * 401))
        assert isinstance(answer, Stored)
        assert [(place, code) for place, code, _ in answer.rejected] == [
            (1, LimitError.code),
            (2, LimitError.code),
        ]
        assert found(peer, b"good") == [1]

    @pytest.mark.parametrize(
        "message",
        [
            Put("i", b"short", 0, keys(b"k"), keys(b"\x01")),
            Put("i", version() + b"long", 0, keys(b"k"), keys(b"\x01")),
            Put("", version(), 0, keys(b"k"), keys(b"\x01")),
            Put("i" * 65, version(), 0, keys(b"k"), keys(b"\x01")),
            Put("i\n", version(), 0, keys(b"k"), keys(b"\x01")),
            Put("i", version(), 0, keys(b"k", b"l"), keys(b"\x01")),
            Apply("i", keys(b"k"), keys(b"\x01", b"\x02")),
            Apply("i", keys(b"k", b"l"), keys(b"\x01")),
            Put("i", version(), 0, Frame(b"garbage"), keys(b"\x01")),
            Put("i", version(), 0, keys(b"k"), Frame(b"\x91\xc0")),
            Delete("i", b"", keys(b"k")),
            Lookup("i", 1, Frame(b"")),
            Lookup("i", 1, Frame(b"\x91\xa1k")),
            Fetch("i", Frame(b"\xdd\xff\xff\xff\xff")),
            Scan("i", b"", b"odd", b"", 9, 9),
            Scan("i", b"", b"\xff\xff", b"", 9, 9),
            Scan("i", b"", EVERYWHERE * 2, b"", 9, 9),
            Pong(),
            Stored([]),
            Error(1, "text"),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_invalid_request_is_refused_and_peer_serves(self, peer: Peer, message: Message) -> None:
        assert isinstance(peer.refusal(message), ProtocolError | LimitError)
        assert peer.core.failure is None
        assert peer.ask(put(b"k")) == Stored([])


class TestBounds:
    """Limits of the cost of a message, and of waiting requests."""

    def test_page_counts_large_records_as_several(self, peer: Peer) -> None:
        large = b"\xc6" + (4 * 2**20).to_bytes(4, "big") + bytes(4 * 2**20)
        for number in range(30):
            peer.ask(put(b"%d" % number, value=large))
        seen, after, begin, pages = 0, b"", 0, 0
        while begin < PARTITIONS:
            page = peer.ask(Count("i", b"", EVERYWHERE[2 * begin :], after, 1000, 10**6))
            assert isinstance(page, Page)
            seen, after, begin, pages = seen + page.count, page.after, begin + page.done, pages + 1
        assert seen == 30
        assert pages > 1

    def test_peer_queries_are_limited_by_weight(self) -> None:
        peer = Peer(topology(), max_waiting_bytes=2 * 2**20)
        question = encode(Envelope(7, EPOCH, 0, CopyRequest(EVERYWHERE, b"")))
        replies = [
            reply for _ in range(10) for reply in peer.core.receive(b"p", question, peer.now)
        ]
        assert {type(decode(reply.frames).message) for reply in replies} == {Error}
        assert 1 <= len([reply for reply in peer.iterate() if isinstance(reply, CopyReply)]) < 10
        assert isinstance(peer.ask(CopyRequest(EVERYWHERE, b"")), CopyReply)  # there is room again

    def test_admin_requests_are_limited_in_number(self) -> None:
        peer = Peer(topology(), max_waiting_bytes=2 * 2**20, max_requests=10)
        frames = encode(Envelope(7, EPOCH, 0, AdminRequest("pause", [])))
        replies = [reply for _ in range(20) for reply in peer.core.receive(b"a", frames, peer.now)]
        pending = peer.core.admin_requests.take()
        assert (len(pending), len(replies)) == (10, 10)
        for request in pending:
            request.answer(AdminReply(b""), peer.now)
        assert peer.core.receive(b"a", frames, peer.now) == []

    def test_seen_requests_of_strangers_are_not_stored(self) -> None:
        peer = Peer(topology("ab"))
        for number in range(100):
            assert isinstance(peer.refusal(SeenRequest(f"x{number}", 2**63)), Unauthorised)
        assert isinstance(peer.ask(SeenRequest("b", 1)), SeenReply)
        assert [peer.core.local_partitions.store_ids["b"]] == [
            store_id for store_id, _ in peer.core.local_partitions.memory.all()
        ]


class TestDrops:
    def test_request_past_its_deadline_is_dropped(self, peer: Peer) -> None:
        answer = peer.ask(put(b"k"), deadline=peer.now - 1)
        assert isinstance(answer, Error)
        assert isinstance(answer.error(), DeadlinePassed)
        assert peer.core.health.counts["late"] == 1
        assert peer.store.records == {}
        assert peer.ask(put(b"k"), deadline=peer.now) == Stored([])

    def test_request_from_before_a_step_of_the_clock_is_dropped(self, peer: Peer) -> None:
        assert peer.ask(put(b"k"), deadline=peer.now + 700) == Stored([])
        sent_at = peer.now
        peer.now -= 3_600_000
        answer = peer.ask(put(b"k"), deadline=sent_at + 700)
        assert isinstance(answer, Error)
        assert answer.error().args == (
            "the request was sent before the clock of this peer was set back",
        )
        assert isinstance(answer.error(), DeadlinePassed)

    @pytest.mark.parametrize("parts", [[], [b""], [b"\x00"], [b"\x91\x01"], [b"garbage"] * 20])
    def test_message_without_header_is_dropped(self, peer: Peer, parts: list[bytes]) -> None:
        assert peer.core.receive(b"client", parts, peer.now) == []
        assert peer.core.health.counts["malformed"] == 1

    def test_invalid_message_with_header_is_answered(self, peer: Peer) -> None:
        for header, error in (
            ([1, 999, 7, 5, 0], ProtocolError),
            ([9, 4, 7, 5, 0], VersionMismatch),
        ):
            [reply] = peer.core.receive(b"client", [msgpack.packb(header)], peer.now)
            answer = decode(reply.frames)
            assert answer.correlation == 7
            assert isinstance(answer.message, Error)
            assert isinstance(answer.message.error(), error)

    @given(st.lists(st.binary(max_size=50), max_size=9))
    def test_garbage_is_dropped_or_answered(self, parts: list[bytes]) -> None:
        peer = Peer(topology())
        for reply in peer.core.receive(b"client", parts, peer.now):
            assert isinstance(decode(reply.frames).message, Error)

    @given(st.integers(0, 60), st.data())
    def test_any_fields_do_not_fail_the_core(self, kind: int, data: st.DataObject) -> None:
        peer = Peer(topology())
        field = st.integers(0, 2**64 - 1) | st.binary(max_size=30) | st.text(max_size=5)
        more = data.draw(st.lists(field | st.lists(field, max_size=3), max_size=7))
        body = data.draw(st.lists(st.binary(max_size=30), max_size=3))
        header = msgpack.packb([1, kind, 7, EPOCH, 0, *more])
        peer.core.receive(b"client", [header, *body], peer.now)
        peer.iterate()
        assert peer.core.failure is None


class TestFutureEpochs:
    def test_request_of_newer_epoch_waits_for_topology(self, peer: Peer) -> None:
        assert peer.ask(put(b"k"), epoch=EPOCH + 1) is None
        assert peer.core.topology_news.wants_refresh
        newer = View(replace(topology(), epoch=EPOCH + 1), frozenset("a"))
        assert peer.core.install(newer, peer.now) == []
        assert peer.iterate() == [Stored([])]
        assert not peer.core.topology_news.wants_refresh

    def test_request_of_invented_epoch_is_answered_later(self, peer: Peer) -> None:
        assert peer.ask(put(b"k"), epoch=2**40) is None
        peer.now += 60_000
        [answer] = peer.iterate()
        assert isinstance(answer, Error)
        assert isinstance(answer.error(), NotReady)

    def test_epoch_that_no_peer_knows_any_more_is_passed(self, peer: Peer) -> None:
        for epoch in (2**63, EPOCH + 7, EPOCH + 8):  # the first is invented, the last one waits
            assert peer.ask(put(b"k"), epoch=epoch) is None
            peer.now += 5000
            peer.iterate()
        [step] = peer.core.take_proposals()
        later = step(topology())
        assert later is not None
        assert later.epoch > EPOCH + 7

    def test_waiting_requests_are_limited(self, peer: Peer) -> None:
        frames = encode(Envelope(7, EPOCH + 1, 0, Lookup("i", 1, keys(b"k"))))
        replies = [
            reply for _ in range(1500) for reply in peer.core.receive(b"x", frames, peer.now)
        ]
        assert 0 < len(replies) < 1500
        assert all(
            isinstance(decode(reply.frames).message.error(), Busy)  # type: ignore[attr-defined]
            for reply in replies
        )

    def test_older_topology_is_not_installed(self, peer: Peer) -> None:
        peer.core.install(View(replace(topology(), epoch=EPOCH - 1)), peer.now)
        assert peer.ask(put(b"k")) == Stored([])
