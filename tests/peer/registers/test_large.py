"""Requests for many large registers: each message between peers fits into a frame."""

from __future__ import annotations

import pytest

from dstash.errors import Busy
from dstash.limits import MAX_FRAME_BYTES
from dstash.peer.admission.requests import Reply
from dstash.peer.registers.pending import Answer, Pending
from dstash.peer.registers.proposer import Proposer, Time
from dstash.peer.registers.quorum import Voters
from dstash.store.record import Record, build_record
from dstash.store.register.header import Header, pack_header
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from tests.harness.joined import Joined
from tests.harness.registers import Callers

NOW = 1_800_000_000_000
VALUE = b"\xc6" + (1_000_000).to_bytes(4, "big") + bytes(1_000_000)
KEYS = [f"k{number}".encode() for number in range(20)]


class Weighed(Joined):
    """Joined cores that note the size of the largest frame of an answer."""

    largest = 0

    def _answer_each(self, name: str, replies: list[Reply]) -> None:
        for reply in replies:
            self.largest = max(self.largest, *map(len, reply.frames))
        super()._answer_each(name, replies)


@pytest.fixture
def joined() -> Weighed:
    return Weighed(registers=True)


@pytest.fixture
def callers(joined: Weighed) -> Callers:
    callers = Callers(joined)
    for key in KEYS:
        callers.run(callers.change(Kind.PUT, key, values=[VALUE], home="a"))
    joined.settle()
    return callers


def test_read_of_large_registers_fits_into_frames(joined: Weighed, callers: Callers) -> None:
    results = callers.run(callers.settle(*KEYS, home="b")).results
    assert [result.outcome for result in results] == [Outcome.FOUND] * 4 + [Outcome.REJECTED] * 16
    assert {result.error[0] for result in results[4:]} == {Busy.code}
    assert 4 * len(VALUE) < joined.largest < MAX_FRAME_BYTES // 2
    rounds = joined.peers["b"].registers.describe()["rounds"]
    assert sum(rounds.values()) <= 25, "most are read from the store of the home"
    assert not any("accept" in key or "lost" in key for key in rounds), "nothing is written"


def test_large_registers_are_changed_in_rounds_whose_answers_fit(
    joined: Weighed, callers: Callers
) -> None:
    began = joined.now
    results = callers.run(callers.change(Kind.DELETE, *KEYS, home="b")).results
    assert {result.outcome for result in results} == {Outcome.APPLIED}
    assert joined.largest < MAX_FRAME_BYTES // 2
    assert joined.now - began < 500


def test_read_waits_for_the_peer_itself_when_others_show_no_record() -> None:
    voters = Voters(("a", "b", "c"), (frozenset("abc"),), frozenset("abc"))
    proposer = Proposer(b"\0\0\2@rk", voters, "a", b"abcd", lambda: 0.0)
    answers: list[Answer] = []
    proposer.queue.append(Pending(None, answers.append))
    time = Time(0, NOW, 0)
    attempt = proposer.next(time)
    assert attempt is not None
    version = pack(stamp_at(NOW), b"abcd")
    header = pack_header(Header(5))
    record = build_record(b"@r", b"k", Record(version, RecordFlag.REGISTER, 0, header + b"\1"))
    for peer in "bc":
        proposer.take(attempt, peer, Vote(Verdict.VOTED, version, 0, 0), time)
        assert (proposer.attempt, answers) == (attempt, [])
    proposer.take(attempt, "a", Vote(Verdict.VOTED, version, 0, 0, record), time)
    assert [answer[:3] for answer in answers] == [(Outcome.FOUND, 5, b"\1")]
