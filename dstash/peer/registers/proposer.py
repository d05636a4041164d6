"""The proposer of one register: which request for votes follows from the last one (P1 to P9).

It has no I/O and no clock. ``docs/atomic.md`` has the rules and the proofs. All operations of this
register that clients have sent to this peer wait here, in the order of their arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from dstash.errors import DiskFull, DStashError, Unavailable
from dstash.peer.registers.attempt import Attempt, Phase
from dstash.peer.registers.operations import State, read
from dstash.peer.registers.pending import Pending
from dstash.peer.registers.plan import MAX_STEP, Ballot, Plan, plan
from dstash.peer.registers.quorum import Voters
from dstash.store.record import ABSENT, version_of
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import Version

#: How long (milliseconds) voters may take to answer before they count as silent; to be asked.
_ANSWER_MS: Final = 500
_ASK_MS: Final = 100
#: How long (milliseconds) an accept is repeated to silent voters before its round is lost.
_ACCEPT_MS: Final = 2000
#: How long (milliseconds) a round is continued: later, it might not be above the floor any more.
_TENURE_MS: Final = 20_000
#: The pauses (milliseconds) after lost rounds: at random up to a bound that doubles, and by rank.
_PAUSE_MS: Final = 5
_MAX_DOUBLINGS: Final = 6
_RANK_PAUSE_MS: Final = 10
#: How many rounds in the future a voter is led to the round of another voter, one after the other.
_MAX_CLIMB: Final = 100


#: Returns the record of a storage key in the store of this peer, None for none, and ``UNKNOWN`` if
#: that is not readable. It only shows what is likely.
Peek = Callable[[bytes], bytes | None]
UNKNOWN: Final = b""


def peek_nothing(storage_key: bytes) -> bytes | None:
    """Return ``UNKNOWN``."""
    return UNKNOWN


class Time(NamedTuple):
    """The time, in milliseconds.

    ``steady`` never goes back; ``cluster`` is that of the cluster clock, since 1970; ``expired``
    is the time up to which an expiry has certainly passed, 0 if that is unknown.
    """

    steady: int
    cluster: int
    expired: int


@dataclass(slots=True)
class Tenure:
    """A prepared round that is continued with further steps.

    ``is_agreed``: a quorum holds its record.
    """

    ballot: Ballot
    record: bytes | None
    state: State
    is_agreed: bool
    began: int

    @property
    def version(self) -> Version:
        """The version of its record; all zero without one."""
        return ABSENT if self.record is None else version_of(self.record)


class Proposer:
    """The proposer of one register.

    Args:
        key: its storage key.
        voters: who votes on it.
        me: this peer.
        writer: the number of this process.
        random: returns a number from 0 to 1.
        peek: returns what this peer holds.
    """

    __slots__ = (
        "_climb",
        "_failures",
        "_heard",
        "_is_needed",
        "_is_write_due",
        "_me",
        "_peek",
        "_random",
        "_too_far",
        "_writer",
        "attempt",
        "key",
        "queue",
        "reason",
        "resume_at",
        "tenure",
        "voters",
    )

    def __init__(
        self,
        key: bytes,
        voters: Voters,
        me: str,
        writer: bytes,
        random: Callable[[], float],
        peek: Peek = peek_nothing,
    ) -> None:
        self.key = key
        self.voters = voters
        self.queue: deque[Pending] = deque()
        self.attempt: Attempt | None = None
        self.tenure: Tenure | None = None
        #: When (steady milliseconds) it may send again.
        self.resume_at = 0
        #: Why the last round was lost.
        self.reason: DStashError | None = None
        self._me = me
        self._writer = writer
        self._random = random
        self._peek = peek
        #: By voter, the round that the next one must exceed.
        self._heard: dict[str, int] = {}
        #: The round of the last prepare, if voters refused it as too far in the future; else 0.
        self._too_far = 0
        #: The next round, if it leads a voter to the round of another one; else 0.
        self._climb = 0
        #: Whether no quorum exists without voters that have promised rounds of the future.
        self._is_needed = False
        self._failures = 0
        self._is_write_due = False

    # -- what is sent next

    def next(self, time: Time) -> Attempt | None:
        """Return the next request for votes; None if there is none now."""
        if self.attempt is not None or time.steady < self.resume_at:
            return None
        while self.queue and self.queue[0].is_decided:
            self.queue.popleft()
        if not self.queue:
            return None
        self.attempt = self._begin(time)
        return self.attempt

    def _begin(self, time: Time) -> Attempt:
        tenure = self.tenure
        if tenure is not None and self._is_over(tenure, time):
            tenure = self.tenure = None
        if tenure is not None:
            planned = self._plan(tenure, time)
            if planned.ballot.step > tenure.ballot.step or planned.needs_step:
                return self._accept(tenure, planned, time)
            return self._ask(time)
        if self._is_write_due or not all(pending.may_need_no_write for pending in self.queue):
            return self._prepare(time)
        if not self._failures and self._is_write_likely(time):
            return self._prepare(time)
        return self._ask(time)

    def _is_over(self, tenure: Tenure, time: Time) -> bool:
        is_old = time.steady - tenure.began > _TENURE_MS
        is_preempted = self._past() > tenure.ballot.round  # a voter has promised a later one
        return is_old or is_preempted or tenure.ballot.step >= MAX_STEP - 1

    def _plan(self, tenure: Tenure, time: Time) -> Plan:
        return plan(self._undecided(), tenure.state, tenure.ballot, time.expired)

    def _undecided(self) -> Iterator[Pending]:
        return (pending for pending in self.queue if not pending.is_decided)

    def _is_write_likely(self, time: Time) -> bool:
        """Whether an operation would write if all replicas held what this peer holds (P8)."""
        if all(pending.operation is None for pending in self.queue):
            return False
        record = self._peek(self.key)
        if record == UNKNOWN:
            return False
        nothing = Ballot(0, 0, self._writer)
        planned = plan(self._undecided(), read(record, 0), nothing, time.expired)
        return planned.ballot.step > 0 or planned.needs_step

    def _known(self) -> bytes | None:
        return self.tenure.record if self.tenure is not None else None

    def _ask(self, time: Time) -> Attempt:
        return self._attempt(Phase.ASK, 0, time)

    def _prepare(self, time: Time) -> Attempt:
        self._is_write_due = False
        past = self._past()
        number = self._climb or max(time.cluster, past + 1)
        self._climb = 0
        attempt = self._attempt(Phase.PREPARE, number, time)
        attempt.is_needed = self._is_needed and number == past + 1
        return attempt

    def _past(self) -> int:
        """Return the round that the next one must exceed.

        A minority may have promised a round that is too far in the future for the other voters, who
        are a quorum without it (V5). So it does not count after a round above it was refused.
        """
        heard = self._heard.values()
        if not self._too_far:
            return max(heard, default=0)
        return max((past for past in heard if past + 1 < self._too_far), default=0)

    def _accept(self, tenure: Tenure, planned: Plan, time: Time) -> Attempt:
        """Write the steps of a plan; without any, write the base again, as the next step."""
        if planned.ballot.step == tenure.ballot.step:
            planned = planned._replace(ballot=planned.ballot.after(1))
        attempt = self._attempt(Phase.ACCEPT, planned.ballot.round, time)
        attempt.plan, attempt.record = planned, planned.record(self.key)
        tenure.ballot = planned.ballot  # a step is never reused, even if it is lost
        for item in planned.planned:
            item.pending.emitted = item.pending.emitted or item.changes
        return attempt

    def _attempt(self, phase: Phase, number: int, time: Time) -> Attempt:
        until = time.steady + (_ASK_MS if phase is Phase.ASK else _ANSWER_MS)
        covers = len(self.queue)
        return Attempt(phase, number, self.voters, self._known(), covers, until, time.steady)

    def wants_own_vote(self) -> bool:
        """Whether this peer's promise makes the round of others a quorum (P7)."""
        attempt = self.attempt
        if attempt is None or attempt.phase is not Phase.PREPARE or self._me not in attempt.waiting:
            return False
        return not attempt.is_won and self.voters.is_quorum([*attempt.voted, self._me])

    # -- what the answers mean

    def take(self, attempt: Attempt, peer: str, vote: Vote | None, time: Time) -> bool:
        """Take the answer of a voter; None if it gives none.

        Returns whether the request for votes has ended, so that ``next`` may return another.
        """
        if attempt is not self.attempt or peer not in attempt.waiting:
            return False
        if vote is None:
            attempt.waiting.discard(peer)
        else:
            attempt.take(peer, vote)
            self.hear(peer, vote)
        return self._evaluate(attempt, time)

    def hear(self, peer: str, vote: Vote) -> None:
        """Take note of a vote, also of one that comes too late to count."""
        self._heard[peer] = max(self._heard.get(peer, 0), vote.past)

    def expire(self, attempt: Attempt, time: Time) -> set[str]:
        """End the time of a request for votes; returns the voters that an accept is sent to again.

        An accept without an answer is sent again unchanged (P2).
        """
        if attempt is not self.attempt:
            return set()
        if attempt.phase is Phase.ACCEPT and time.steady < attempt.began + _ACCEPT_MS:
            attempt.until = time.steady + _ANSWER_MS
            return set(attempt.waiting)
        attempt.waiting.clear()
        self._evaluate(attempt, time)
        return set()

    def _evaluate(self, attempt: Attempt, time: Time) -> bool:
        if attempt.phase is Phase.ASK:
            self._evaluate_answers(attempt, time)
        elif attempt.is_won:
            self.attempt, self._failures = None, 0
            if attempt.phase is Phase.PREPARE:
                self._is_needed = False
                self._begin_tenure(attempt, time)
            else:
                self._chosen(attempt)
        elif attempt.is_lost:
            self._lose(attempt, time)
        return self.attempt is None

    def _evaluate_answers(self, attempt: Attempt, time: Time) -> None:
        shown = attempt.shown()
        version = attempt.agreed(shown)
        if version is not None and not attempt.awaits_record(version):
            self.attempt, self._failures = None, 0
            self._agreed(attempt, version, shown.horizon, time)
        elif not attempt.may_agree(shown):
            if attempt.is_won:
                self.attempt, self.tenure, self._is_write_due = None, None, True
            elif not attempt.waiting or attempt.is_lost:
                self._lose(attempt, time)

    def _agreed(self, attempt: Attempt, version: Version, horizon: int, time: Time) -> None:
        """Answer what changes nothing: a quorum has shown this version since it arrived (P3)."""
        if self.tenure is not None and self.tenure.version != version:
            self.tenure = None
        record = attempt.record_of(version) if version != ABSENT else None
        if record is None and version != ABSENT:
            return self._lose(attempt, time)  # a voter that sends no record is faulty
        state = read(record, horizon)
        if self.tenure is not None:
            state = self.tenure.state
        nothing = Ballot(0, 0, self._writer)
        for pending in list(islice(self.queue, attempt.covers)):
            if pending.is_decided:
                continue
            tried = plan([pending], state, nothing, time.expired)
            if tried.ballot.step or tried.needs_step:
                self._is_write_due = True
            else:
                pending.answer(tried.planned[0].answer)
        return None

    def _begin_tenure(self, attempt: Attempt, time: Time) -> None:
        """Take the base of a round that a quorum has promised (P1)."""
        shown = attempt.shown()
        version = shown.highest
        record = attempt.record_of(version) if version != ABSENT else None
        if record is None and version != ABSENT:
            return self._lose(attempt, time)  # a voter that sends no record is faulty
        self.tenure = tenure = Tenure(
            Ballot(attempt.round, -1, self._writer),
            record,
            read(record, shown.horizon),
            attempt.agreed(shown) == version,
            time.steady,
        )
        planned = self._plan(tenure, time)
        if planned.ballot.step >= 0 or planned.needs_step or not tenure.is_agreed:
            self.attempt = self._accept(tenure, planned, time)
            return None
        covered = set(map(id, islice(self.queue, attempt.covers)))
        for item in planned.planned:
            if id(item.pending) in covered:  # others need a check that is sent after they arrived
                item.pending.answer(item.answer)
        return None

    def _chosen(self, attempt: Attempt) -> None:
        tenure, planned, self.reason = self.tenure, attempt.plan, None
        if tenure is None or planned is None:
            return  # never: only a tenure sends accepts
        tenure.record, tenure.state, tenure.is_agreed = attempt.record, planned.state, True
        for item in planned.planned:
            item.pending.must_write = False
            item.pending.answer(item.answer)

    def _lose(self, attempt: Attempt, time: Time) -> None:
        """Give a round up; its operations stay in the queue, under their request ids (P5)."""
        self.attempt = self.tenure = None
        self._is_write_due = attempt.has_heard_quorum
        self.reason = _reason(attempt)
        if attempt.phase is Phase.PREPARE:
            self._avoid_future(attempt)
        pause = self._random() * _PAUSE_MS * 2 ** min(self._failures, _MAX_DOUBLINGS)
        rank = self.voters.members.index(self._me) if self._me in self.voters.members else 0
        self._failures += 1
        self.resume_at = time.steady + round(pause) + rank * _RANK_PAUSE_MS

    def _avoid_future(self, attempt: Attempt) -> None:
        """Choose the next round after one that voters refused as too far in the future (P10).

        Each voter promises the round after its own. So where the rounds of a quorum are ahead of
        the clocks and differ a little, the voter with the lower one is led to the other. If no
        quorum exists below such a round, the others are asked for one that is needed.
        """
        verdicts = {vote.verdict for vote in attempt.votes.values()}
        before = self._too_far
        self._too_far = attempt.round if Verdict.TOO_FAR in verdicts else 0
        if attempt.round < before and not self._too_far:
            self._is_needed = self._is_needed or attempt.is_held_up(before - 1)
        gap = attempt.past - attempt.round
        if self._too_far and attempt.voted and 0 <= gap < _MAX_CLIMB:
            self._climb = attempt.round + 1

    def abandon(self) -> None:
        """End the tenure and the request for votes, because the epoch has changed (P6)."""
        self.attempt = self.tenure = None
        self._is_write_due = self._is_needed = False
        self.resume_at = 0


def _reason(attempt: Attempt) -> DStashError:
    verdicts = {vote.verdict for vote in attempt.votes.values()}
    if Verdict.NO_ROOM in verdicts:
        return DiskFull("replicas of the register have no room on their disks")
    answered = len(attempt.votes)
    return Unavailable(
        f"{len(attempt.voted)} of {len(attempt.voters.members)} replicas voted, {answered} answered"
    )
