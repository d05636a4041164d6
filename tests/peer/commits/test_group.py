"""Group commit: which writes a commit takes, by which rules, and what the peer learns of it."""

from __future__ import annotations

import pytest

from dstash.cluster.replication.tasks import Merge
from dstash.errors import DStashError
from dstash.limits import PARTITIONS
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import COMMIT_BYTES, WaitingWrite
from dstash.peer.commits.group import GroupCommit
from dstash.peer.keyspaces import Keyspaces
from dstash.store.record import Record, build_record, head, keyspace, partition_of
from dstash.store.register.header import Header, pack_header
from dstash.store.register.voter import Verdict
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.messages import Error, Put, Stored
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.shapes import Frame
from tests.peer.parts import NOW, Parts, view_of

EVERYTHING = frozenset(range(PARTITIONS))
SPACE = keyspace(b"i", EVERYTHING)


class Group:
    """The group commit of a peer that holds every partition."""

    def __init__(self, disk_reserve: int = 0) -> None:
        self.parts = Parts()
        self.backlog = Backlog(64 * COMMIT_BYTES, 100)
        keyspaces = Keyspaces("a")
        keyspaces.install(view_of("a"))
        self.commits = GroupCommit(
            self.backlog,
            self.parts.partitions,
            keyspaces,
            self.parts.clock,
            max_clock_skew_ms=500,
            disk_reserve=disk_reserve,
        )

    def put(self, key: bytes, *, at: int = NOW, weight: int | None = None) -> None:
        keys, payloads = Frame(codec.pack_blobs([key])), Frame(codec.pack_blobs([b"\x01"]))
        message = Put("i", pack(stamp_at(at), b"test"), 0, keys, payloads)
        write = WaitingWrite.of(Ticket(key, 1), message, SPACE)
        write.weight = weight or write.weight
        self.backlog.admit(write)

    def run(self) -> list[object]:
        """Run one commit; returns what it replies."""
        commit = self.commits.begin(NOW)
        commit.run(self.parts.store)
        self.commits.end(commit, NOW)
        return [message for _, message in (*commit.replies, *commit.votes)]


@pytest.fixture
def group() -> Group:
    return Group()


def test_commit_takes_waiting_writes_up_to_its_size(group: Group) -> None:
    for key in (b"k", b"l", b"m"):
        group.put(key, weight=COMMIT_BYTES // 2)
    assert group.run() == [Stored([])] * 2
    assert group.backlog.has_waiting
    assert group.run() == [Stored([])]
    assert not group.backlog.has_work
    assert group.backlog.waiting_bytes == 0


def test_partitions_of_a_commit_count_as_changed(group: Group) -> None:
    group.parts.partitions.changed(range(PARTITIONS), NOW - 10**9)
    group.put(b"k")
    group.run()
    quiet = group.parts.partitions.quiet_among(EVERYTHING, NOW)
    assert set(EVERYTHING) - set(quiet) == {partition_of(b"k")}


def test_version_from_the_future_is_refused_and_clocks_are_read_again(group: Group) -> None:
    group.parts.clock.is_due = False
    group.put(b"k", at=NOW + 501)
    [reply] = group.run()
    assert isinstance(reply, Error)
    assert group.parts.clock.is_due


def test_task_gets_the_result_of_its_write_at_the_end(group: Group) -> None:
    version = pack(stamp_at(NOW), b"test")
    results: list[DStashError | None] = []
    group.commits.add(Merge(seal(SPACE, [b"k"], head(version), [b"\x01"])), results.append)
    commit = group.commits.begin(NOW)
    commit.run(group.parts.store)
    assert results == []
    group.commits.end(commit, NOW)
    assert results == [None]


def test_put_is_refused_when_the_disk_reserve_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(disk_reserve=1000)
    monkeypatch.setattr(group.parts.store, "has_room", lambda reserve: reserve < 1000)
    group.put(b"k")
    [reply] = group.run()
    assert isinstance(reply, Error)
    assert "disk is full" in reply.text


class TestVotes:
    """The limits of votes on registers come from the state of the peer."""

    KEY = partition_of(b"k").to_bytes(2, "big") + b"\x02@rk"

    def vote(self, group: Group, message: Prepare | Accept) -> Promised | Accepted:
        group.backlog.admit(WaitingWrite.of(Ticket(b"peer", 1), message, None))
        [reply] = group.run()
        assert isinstance(reply, Promised | Accepted)
        return reply

    def prepare(self, group: Group, round_: int) -> int:
        keys = Frame(codec.pack_blobs([self.KEY]))
        return self.vote(group, Prepare(round_, b"abcd", b"", keys)).verdicts[0]

    def accept(self, group: Group, stamp: int) -> int:
        content = pack_header(Header(stamp)) + b"\x01"
        record = Record(pack(stamp, b"abcd"), RecordFlag.REGISTER, 0, content)
        packed = [
            Frame(codec.pack_blobs([part]))
            for part in (self.KEY, build_record(b"@r", b"k", record))
        ]
        return self.vote(group, Accept(*packed)).verdicts[0]

    def test_round_is_at_most_the_skew_ahead_of_the_cluster_clock(self, group: Group) -> None:
        assert self.prepare(group, NOW + 501) == Verdict.TOO_FAR
        assert self.prepare(group, NOW + 500) == Verdict.VOTED

    def test_round_is_above_the_horizon(self, group: Group) -> None:
        group.parts.partitions.adopt({partition_of(b"k"): stamp_at(NOW - 10)})
        assert self.prepare(group, NOW - 10) == Verdict.TOO_OLD
        assert self.prepare(group, NOW - 9) == Verdict.VOTED

    def test_vote_is_above_a_promised_floor(self, group: Group) -> None:
        group.parts.partitions.floor = stamp_at(NOW - 10)
        assert self.prepare(group, NOW - 10) == Verdict.TOO_OLD
        assert self.accept(group, stamp_at(NOW - 10)) == Verdict.TOO_OLD
        assert self.prepare(group, NOW - 9) == Verdict.VOTED
        assert self.accept(group, stamp_at(NOW - 9)) == Verdict.VOTED

    def test_bound_of_corrupt_register_does_not_rise_with_other_writes(self, group: Group) -> None:
        assert self.accept(group, stamp_at(NOW)) == Verdict.VOTED
        store = group.parts.store
        store.records[self.KEY] = store.records[self.KEY][:-1] + b"?"
        assert self.prepare(group, 0) == Verdict.CORRUPT
        bound = store.high_water
        group.put(b"other", at=NOW + 300)
        group.run()
        assert store.high_water > bound
        assert self.accept(group, bound) == Verdict.CORRUPT
        assert self.accept(group, bound + 1) == Verdict.VOTED
