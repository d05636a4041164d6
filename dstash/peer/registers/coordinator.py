"""The coordinator: the proposers of all registers for which this peer is the home.

It has no I/O and no clock. What proposers want to send in one iteration of the event loop is sent
as one message for each voter and kind of request. The peer's own votes go through its group commit,
as those of other peers do.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from dstash.cluster.topology.view import View
from dstash.errors import Busy
from dstash.peer.registers.attempt import Attempt, Phase
from dstash.peer.registers.batch_attempt import BatchAttempt
from dstash.peer.registers.batches import Batches
from dstash.peer.registers.pending import Batch, Pending, rejection
from dstash.peer.registers.proposer import Peek, Proposer, Time, peek_nothing
from dstash.peer.registers.quorum import Voters, voters_of
from dstash.peer.registers.requested import Requested
from dstash.peer.registers.vote_requests import Attempts, RecordSizes, requests_for
from dstash.peer.registers.votes import unpack_accepted, unpack_promised
from dstash.store.record import ABSENT, partition_in
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import MAX_STAMP
from dstash.wire.registers.consensus import Accepted, Promised
from dstash.wire.shapes import Message

#: Registers whose tenure is kept, and the bytes of their records.
_MAX_TENURES: Final = 20_000
_MAX_TENURE_BYTES: Final = 32 * 1024 * 1024

#: Registers that one tick works on: requests of other clients must not wait for all of a batch.
_MAX_ACTIVE: Final = 250

#: How long (milliseconds) an answer is awaited at most.
_AWAITED_MS: Final = 3000

#: Requests with fewer registers are decided register by register, with a tenure for each.
_MIN_BATCH: Final = 4

MOVING: Final = (
    "a topology change moves the register to other replicas; it can be used when it has ended"
)


class Outbound(NamedTuple):
    """A request for votes to send to a peer, under ``epoch``."""

    peer: str
    correlation: int
    epoch: int
    message: Message


class _Sent(NamedTuple):
    peer: str
    attempts: Attempts


class Coordinator:
    """The proposers of one peer.

    Args:
        me: the id of this peer.
        writer: the number of this process, 4 bytes.
        random: returns a number from 0 to 1.
        missed: called with a voter that has not acked a chosen step, and the key.
        peek: returns what this peer holds.
    """

    def __init__(
        self,
        me: str,
        writer: bytes,
        random: Callable[[], float],
        missed: Callable[[str, bytes], None],
        peek: Peek = peek_nothing,
    ) -> None:
        self.me = me
        self._writer = writer
        self._random = random
        self._missed = missed
        self._peek = peek
        self._view: View | None = None
        self._by_partition: dict[int, Voters] = {}
        #: One object for all partitions with the same voters.
        self._same_voters: dict[Voters, Voters] = {}
        self._proposers: dict[bytes, Proposer] = {}
        #: Registers without operations whose tenure is kept, by last use, and their bytes.
        self._resting: OrderedDict[bytes, int] = OrderedDict()
        self._resting_bytes = 0
        #: Registers that may have something to send.
        self._active: dict[bytes, Proposer] = {}
        self._timers: list[tuple[int, int, Proposer, Attempt | None]] = []
        self._serials = itertools.count()
        #: Correlation ids apart from those of the scheduler, whose links are shared.
        self._correlations = itertools.count(1 << 48)
        self._batches = Batches(self, me, writer, random, peek, self._correlations)
        #: Registers that are part of a batch: their proposers wait until it has ended.
        self._in_batch: set[bytes] = set()
        self._sent: dict[int, _Sent] = {}
        self._sizes = RecordSizes()
        #: When the answers to requests are not awaited any more, oldest first.
        self._until: deque[tuple[int, int]] = deque()
        self._waiting: list[tuple[Proposer, Attempt, Iterable[str]]] = []
        #: Events since the start, for status and metrics.
        self.counts: dict[str, int] = defaultdict(int)

    @property
    def waits(self) -> int:
        """How many registers have operations that wait."""
        return self._batches.waits + sum(
            1 for proposer in self._proposers.values() if proposer.queue
        )

    # -- input

    def install(self, view: View) -> None:
        """Take a view. With another epoch, all rounds end (P6)."""
        before, self._view = self._view, view
        if before is not None and before.epoch == view.epoch:
            return
        self._by_partition.clear()
        self._same_voters.clear()
        self._batches.end_all()
        self._sent.clear()
        self._until.clear()
        self._timers.clear()
        self._waiting.clear()
        self._resting.clear()
        self._resting_bytes = 0
        self._active = {}
        is_lowering = before is not None and (
            before.topology.ceiling_epoch < view.topology.ceiling_epoch
        )
        for proposer in list(self._proposers.values()):
            proposer.abandon()
            if is_lowering:
                _lose_copies(proposer)
            self._move(proposer, self._voters(proposer.key))

    def _move(self, proposer: Proposer, voters: Voters) -> None:
        if self.me in voters.counted and not voters.is_moving:
            proposer.voters = voters
            self._active[proposer.key] = proposer
            return
        for pending in proposer.queue:
            if pending.emitted:
                pending.expire()
            pending.answer(rejection(Busy(MOVING)))
        proposer.queue.clear()
        del self._proposers[proposer.key]

    def voters(self, storage_key: bytes) -> Voters:
        """Return the voters of a register; the peer has a view."""
        return self._voters(storage_key)

    def _voters(self, storage_key: bytes) -> Voters:
        if self._view is None:
            raise AssertionError("a register is used before the view is known")
        partition = partition_in(storage_key)
        voters = self._by_partition.get(partition)
        if voters is None:
            voters = voters_of(self._view, partition)
            voters = self._by_partition[partition] = self._same_voters.setdefault(voters, voters)
        return voters

    def submit_all(self, storage_keys: Sequence[bytes], requested: Requested, batch: Batch) -> None:
        """Queue the operations of a request, whose registers have this peer among their voters.

        Args:
            storage_keys: of the registers.
            requested: the operation of each.
            batch: takes the answers.
        """
        by_voters: dict[Hashable, tuple[Voters, list[bytes], list[int]]] = {}
        has_many = len(storage_keys) >= _MIN_BATCH
        for place, storage_key in enumerate(storage_keys):
            if has_many and self._is_free(storage_key):
                voters = self._voters(storage_key)
                _, keys, places = by_voters.setdefault(voters.names, (voters, [], []))
                keys.append(storage_key)
                places.append(place)
            else:
                self.submit(storage_key, batch.add(place, requested.of(place)))
        for voters, keys, places in by_voters.values():
            self._in_batch.update(keys)
            self._batches.begin(voters, batch, requested, keys, places)

    def _is_free(self, storage_key: bytes) -> bool:
        """Whether a register can be part of a batch: no operation waits for it.

        The tenure of a register whose operations have ended is given up. The batch prepares later
        rounds, or its proposer does so, because voters refuse the round of the batch.
        """
        if storage_key in self._in_batch:
            return False
        if storage_key not in self._proposers:
            return True
        if storage_key not in self._resting:
            return False
        self._resting_bytes -= self._resting.pop(storage_key)
        del self._proposers[storage_key]
        return True

    def expire(self, batch: Batch) -> None:
        """Answer for the registers of a request at its deadline."""
        for pending in batch.pending:
            pending.expire()
        self._batches.expire(batch)

    def submit(self, storage_key: bytes, pending: Pending) -> None:
        """Queue an operation on a register whose voters include this peer."""
        self._proposer(storage_key, pending).queue.append(pending)

    def _proposer(self, storage_key: bytes, pending: Pending) -> Proposer:
        """Return the proposer of a register, for another operation."""
        proposer = self._proposers.get(storage_key)
        if proposer is None:
            voters = self._voters(storage_key)
            proposer = Proposer(
                storage_key, voters, self.me, self._writer, self._random, self._peek
            )
            self._proposers[storage_key] = proposer
        else:
            self._resting_bytes -= self._resting.pop(storage_key, 0)
        pending.why = lambda: proposer.reason
        if storage_key not in self._in_batch:
            self._active[storage_key] = proposer
        return proposer

    # -- for batches

    def give_back(
        self, attempt: BatchAttempt, positions: Sequence[int], votes: dict[str, list[Vote]]
    ) -> None:
        """Let the registers at positions of a batch be proposed each by itself."""
        requested, batch = attempt.requested, attempt.batch
        own = Vote(Verdict.VOTED, ABSENT, attempt.round, 0)
        for count, position in enumerate(positions):
            key, place = attempt.keys[position], attempt.places[position]
            self._in_batch.discard(key)
            pending = batch.add(place, requested.of(place), emitted=attempt.emitted)
            proposer = self._proposer(key, pending)
            proposer.queue.appendleft(pending)  # it came before those that have waited for it
            proposer.hear(self.me, own)
            for name, given in votes.items():
                proposer.hear(name, given[count])

    def release(self, keys: Iterable[bytes]) -> None:
        """Take note that a batch has ended for some registers."""
        self._in_batch.difference_update(keys)
        if len(self._proposers) > len(self._resting):
            for key in keys:
                proposer = self._proposers.get(key)
                if proposer is not None:
                    self._active[key] = proposer

    def missed(self, peer: str, storage_key: bytes) -> None:
        """Take note that a voter has not acked a chosen step."""
        self._missed(peer, storage_key)

    def count(self, phase: Phase, count: int, *, won: bool) -> None:
        """Count requests for votes that have ended."""
        self.counts[f"{phase.value}:{'won' if won else 'lost'}"] += count

    # -- answers

    def conclude(self, storage_key: bytes) -> None:
        """Write the latest version of a register to a quorum again, if this peer may."""
        voters = self._voters(storage_key)
        proposer = self._proposers.get(storage_key)
        is_due = proposer is None or not any(item.must_write for item in proposer.queue)
        if is_due and self.me in voters.counted and not voters.is_moving:
            self.counts["concluded"] += 1
            self.submit(storage_key, Pending(None, lambda answer: None, must_write=True))

    def answered(self, correlation: int, message: Message, time: Time) -> bool:
        """Take an answer; returns whether it was one to a request for votes."""
        sent = self._sent.pop(correlation, None)
        if sent is None:
            return self._batches.answered(correlation, message, time)
        votes: list[Vote] = []
        if isinstance(message, Promised):
            votes = unpack_promised(message)
        elif isinstance(message, Accepted):
            votes = unpack_accepted(message)
        given: list[Vote | None] = [*votes]
        if len(votes) != len(sent.attempts):
            given = [None] * len(sent.attempts)
        elif isinstance(message, Promised):
            self._sizes.learn(sent.attempts, votes)
        for (proposer, attempt), vote in zip(sent.attempts, given, strict=True):
            self._take(proposer, attempt, sent.peer, vote, time)
        return True

    def failed(self, correlation: int, time: Time) -> bool:
        """Take note that a request for votes gets no answer; false if there was none."""
        sent = self._sent.pop(correlation, None)
        if sent is None:
            return self._batches.answered(correlation, None, time)
        for proposer, attempt in sent.attempts:
            self._take(proposer, attempt, sent.peer, None, time)
        return True

    def lost(self, peer: str, time: Time) -> None:
        """Take note that the connection to a peer broke."""
        for correlation in [key for key, sent in self._sent.items() if sent.peer == peer]:
            self.failed(correlation, time)
        self._batches.lost(peer, time)

    def _take(
        self, proposer: Proposer, attempt: Attempt, peer: str, vote: Vote | None, time: Time
    ) -> None:
        if proposer.attempt is not attempt:
            self._take_late(proposer, attempt, peer, vote)
            return
        proposer.take(attempt, peer, vote, time)
        self._follow(proposer, attempt, time)

    def _take_late(
        self, proposer: Proposer, attempt: Attempt, peer: str, vote: Vote | None
    ) -> None:
        """Take an answer after a step was chosen: it may show that the voter has missed it."""
        if vote is not None:
            proposer.hear(peer, vote)
        if attempt.phase is Phase.ACCEPT and attempt.is_won and peer in attempt.waiting:
            attempt.waiting.discard(peer)
            if vote is None or vote.verdict is not Verdict.VOTED:
                self._missed(peer, proposer.key)

    def _follow(self, proposer: Proposer, attempt: Attempt, time: Time) -> None:
        """Do what follows when an attempt may have ended."""
        if proposer.attempt is attempt:
            if proposer.wants_own_vote() and not attempt.has_own:
                attempt.has_own = True
                self._waiting.append((proposer, attempt, (self.me,)))
            return
        self.counts[f"{attempt.phase.value}:{'won' if attempt.is_won else 'lost'}"] += 1
        if attempt.phase is Phase.ACCEPT and attempt.is_won:
            for name in attempt.voters.members:
                if name not in attempt.waiting and name not in attempt.voted:
                    self._missed(name, proposer.key)
        if proposer.attempt is not None:  # a won round continues with an accept at once
            self._emit(proposer, proposer.attempt)
        else:
            self._active[proposer.key] = proposer
            if proposer.resume_at > time.steady:
                self._at(proposer.resume_at, proposer, None)

    # -- output

    def tick(self, time: Time) -> list[Outbound]:
        """Return what is to be sent now; messages to this peer itself are its own votes."""
        self._run_timers(time)
        while self._until and self._until[0][0] <= time.steady:
            self.failed(self._until.popleft()[1], time)
        for key in list(islice(self._active, _MAX_ACTIVE)):
            proposer = self._active.pop(key)
            attempt = proposer.next(time)
            if attempt is not None:
                self._emit(proposer, attempt)
            elif proposer.attempt is None and not proposer.queue:
                self._rest(proposer)
        epoch = self._view.epoch if self._view is not None else 0
        return [
            *self._messages(time, epoch),
            *(
                Outbound(peer, correlation, epoch, message)
                for peer, correlation, message in self._batches.tick(time)
            ),
        ]

    @property
    def is_idle(self) -> bool:
        """Whether ``tick`` has nothing to do, now or later."""
        has_work = self._active or self._waiting or self._timers or self._until
        return not has_work and self._batches.is_idle

    def wakeup(self) -> int | None:
        """Return when (steady milliseconds) ``tick`` is due; None if nothing waits."""
        if self._active or self._waiting:
            return 0
        due = self._batches.wakeup()
        if not self._timers:
            return due
        return self._timers[0][0] if due is None else min(due, self._timers[0][0])

    def _at(self, when: int, proposer: Proposer, attempt: Attempt | None) -> None:
        heapq.heappush(self._timers, (when, next(self._serials), proposer, attempt))

    def _run_timers(self, time: Time) -> None:
        while self._timers and self._timers[0][0] <= time.steady:
            _, _, proposer, attempt = heapq.heappop(self._timers)
            if attempt is None:
                if self._proposers.get(proposer.key) is proposer:
                    self._active[proposer.key] = proposer
            elif proposer.attempt is attempt:
                again = proposer.expire(attempt, time)
                if again:
                    self._waiting.append((proposer, attempt, sorted(again)))
                    self._at(attempt.until, proposer, attempt)
                self._follow(proposer, attempt, time)

    def _emit(self, proposer: Proposer, attempt: Attempt) -> None:
        members: Iterable[str] = attempt.voters.members
        if attempt.phase is Phase.PREPARE:
            members = [name for name in members if name != self.me]
            if proposer.wants_own_vote():
                attempt.has_own, members = True, [*members, self.me]
        self._waiting.append((proposer, attempt, members))
        self._at(attempt.until, proposer, attempt)

    def _messages(self, time: Time, epoch: int) -> list[Outbound]:
        waiting, self._waiting = self._waiting, []
        messages = []
        for peer, attempts, message in requests_for(waiting, self._writer, self._sizes.expected):
            correlation = next(self._correlations)
            self._until.append((time.steady + _AWAITED_MS, correlation))
            self._sent[correlation] = _Sent(peer, attempts)
            messages.append(Outbound(peer, correlation, epoch, message))
        return messages

    # -- memory

    def _rest(self, proposer: Proposer) -> None:
        """Keep the tenure of a register without operations, up to some memory."""
        tenure, key = proposer.tenure, proposer.key
        if tenure is None:
            self._proposers.pop(key, None)
            return
        self._resting_bytes -= self._resting.pop(key, 0)
        size = len(key) + len(tenure.record or b"")
        self._resting[key] = size
        self._resting_bytes += size
        while len(self._resting) > _MAX_TENURES or self._resting_bytes > _MAX_TENURE_BYTES:
            oldest, size = self._resting.popitem(last=False)
            self._resting_bytes -= size
            self._proposers.pop(oldest, None)


def _lose_copies(proposer: Proposer) -> None:
    """Let operations that wait count as applied without a trace, unless one is found (T7)."""
    for pending in proposer.queue:
        if pending.operation is not None:
            pending.operation = replace(pending.operation, lost_until=MAX_STAMP)
