"""The rounds of batches: one request for votes has many registers of one request of a client.

They follow the rules of ``Proposer`` (P1 to P10). What is special is that registers on which the
voters do not agree, or that a voter refuses, leave the batch: ``Owner.give_back`` hands them to
their proposers, together with the votes. A round whose voters are silent is repeated as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from dstash.errors import DStashError, TimedOut, Unavailable
from dstash.peer.registers.attempt import Phase
from dstash.peer.registers.batch_attempt import BatchAttempt, Decided
from dstash.peer.registers.batch_plan import BatchPlan
from dstash.peer.registers.pending import Batch, rejection
from dstash.peer.registers.plan import Ballot
from dstash.peer.registers.proposer import UNKNOWN, Peek, Time
from dstash.peer.registers.quorum import Voters
from dstash.peer.registers.requested import Requested
from dstash.peer.registers.vote_requests import batch_message
from dstash.peer.registers.votes import Columns, columns_of
from dstash.store.register.votes import Vote
from dstash.wire.shapes import Message

#: How long (milliseconds) voters may take to answer, and for each register in addition.
_ANSWER_MS: Final = 500
_ANSWER_OF_KEY_MS: Final = 1
#: How often an accept is sent to silent voters before its round is lost.
_MAX_SENT: Final = 4
#: How long (milliseconds) an answer may come after its voter counted as silent.
_LATE_MS: Final = 3000
#: How long (milliseconds) a quorum may take before further voters are asked. Those are, for what
#: registers hold, the ones behind the first quorum; for a promise, the home itself.
_PATIENCE_MS: Final = 250
#: The pauses (milliseconds) after lost rounds: at random up to a bound that doubles.
_PAUSE_MS: Final = 20
_MAX_DOUBLINGS: Final = 4
#: After that many lost rounds of a batch, its registers are proposed each by itself.
_MAX_LOST: Final = 5
#: The most bytes of records in one message, unless a single record is longer.
_MAX_BYTES: Final = 2 * 1024 * 1024


class Owner(Protocol):
    """The coordinator, as batches use it."""

    def give_back(
        self, attempt: BatchAttempt, positions: Sequence[int], votes: dict[str, list[Vote]]
    ) -> None:
        """Let the registers at positions of a batch be proposed each by itself.

        Args:
            attempt: the batch.
            positions: in it.
            votes: by voter, its vote on each of these registers.
        """
        ...

    def release(self, keys: Iterable[bytes]) -> None:
        """Take note that a batch has ended for some registers."""
        ...

    def missed(self, peer: str, storage_key: bytes) -> None:
        """Take note that a voter has not acked a chosen step."""
        ...

    def count(self, phase: Phase, count: int, *, won: bool) -> None:
        """Count requests for votes that have ended."""
        ...


class _Sent(NamedTuple):
    peer: str
    attempt: BatchAttempt
    #: Those that the attempt had then.
    keys: Sequence[bytes]


class Batches:
    """The batches of one coordinator.

    Args:
        owner: the coordinator.
        me: the id of this peer.
        writer: the number of this process, 4 bytes.
        random: returns a number from 0 to 1.
        peek: returns what this peer holds.
        correlations: yields correlation ids.
    """

    def __init__(
        self,
        owner: Owner,
        me: str,
        writer: bytes,
        random: Callable[[], float],
        peek: Peek,
        correlations: Iterator[int],
    ) -> None:
        self._owner = owner
        self._me = me
        self._writer = writer
        self._random = random
        self._peek = peek
        self._correlations = correlations
        #: The attempts that are not over, in the order in which they began.
        self._open: dict[BatchAttempt, None] = {}
        #: Attempts to send, with the voters that are asked.
        self._due: list[tuple[BatchAttempt, Sequence[str]]] = []
        self._sent: dict[int, _Sent] = {}
        #: When the answers to requests are not awaited any more, oldest first.
        self._until: deque[tuple[int, int]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether ``tick`` has nothing to do, now or later."""
        return not (self._open or self._until)

    @property
    def waits(self) -> int:
        """How many registers wait for votes in batches."""
        return sum(len(attempt.keys) for attempt in self._open)

    def wakeup(self) -> int | None:
        """Return when (steady milliseconds) ``tick`` is due; None if nothing waits."""
        if self._due:
            return 0
        return min((self._due_at(attempt) for attempt in self._open), default=None)

    def begin(
        self,
        voters: Voters,
        batch: Batch,
        requested: Requested,
        keys: Sequence[bytes],
        places: Sequence[int],
    ) -> None:
        """Begin the rounds of some registers of a request.

        Args:
            voters: those of all of them.
            batch: the request.
            requested: its operations.
            keys: their storage keys.
            places: in the request.
        """
        phase = Phase.ASK if requested.may_need_no_write else Phase.PREPARE
        self._open[BatchAttempt(phase, 0, voters, batch, requested, keys, places)] = None

    def end_all(self) -> None:
        """Hand all registers to their proposers, because the epoch has changed (P6)."""
        self._sent.clear()
        self._until.clear()
        self._due.clear()
        for attempt in list(self._open):
            self._close(attempt)
            attempt.votes.clear()
            self._give_back(attempt, range(len(attempt.keys)))

    def expire(self, batch: Batch) -> None:
        """Answer for the registers of a request at its deadline."""
        for attempt in [attempt for attempt in self._open if attempt.batch is batch]:
            error: DStashError = Unavailable(f"no quorum in time: {_reason(attempt)}")
            if attempt.emitted:
                error = TimedOut(f"no quorum has acked it in time: {_reason(attempt)}")
            self._close(attempt)
            self._owner.release(attempt.keys)
            batch.settle(attempt.places, [rejection(error)] * len(attempt.keys))

    # -- answers

    def answered(self, correlation: int, message: Message | None, time: Time) -> bool:
        """Take an answer, None if there will be none; returns whether it was one to a batch."""
        sent = self._sent.pop(correlation, None)
        if sent is None:
            return False
        peer, attempt, keys = sent
        columns = columns_of(message, len(keys)) if message is not None else None
        if attempt.phase is Phase.ACCEPT and (attempt.is_over or len(keys) != len(attempt.keys)):
            self._miss_late(sent, columns)
        if attempt.is_over or peer not in attempt.waiting:
            return True
        attempt.waiting.discard(peer)
        if columns is not None:
            if len(keys) != len(attempt.keys):
                positions = {key: position for position, key in enumerate(keys)}
                columns = columns.only([positions[key] for key in attempt.keys])
            attempt.votes[peer] = columns
        self._evaluate(attempt, time)
        return True

    def lost(self, peer: str, time: Time) -> None:
        """Take note that the connection to a peer broke."""
        for correlation in [key for key, sent in self._sent.items() if sent.peer == peer]:
            self.answered(correlation, None, time)

    def _miss_late(self, sent: _Sent, columns: Columns | None) -> None:
        """Take a late answer to accepts: it may show that the voter has missed chosen steps."""
        peer, attempt, keys = sent
        if attempt.is_over and not (attempt.is_won and peer in attempt.waiting):
            return
        missed = range(len(keys)) if columns is None else sorted(columns.refused)
        left = set() if attempt.is_over else set(attempt.keys)
        self._miss(peer, [keys[position] for position in missed if keys[position] not in left])
        if attempt.is_over:
            attempt.waiting.discard(peer)

    def _miss(self, peer: str, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._owner.missed(peer, key)

    # -- what the answers mean

    def _evaluate(self, attempt: BatchAttempt, time: Time) -> None:
        if attempt.phase is Phase.ACCEPT:
            self._evaluate_accept(attempt, time)
            return
        refused = attempt.refused
        if attempt.has_quorum:
            if attempt.waiting and 4 * len(refused) > len(attempt.keys):
                return  # the other voters may be enough
            self._hand_over(attempt, refused)
            if not attempt.is_over:
                self._follow(attempt, time)
        elif attempt.spare and (not self._may_win(attempt) or self._is_late(attempt, time)):
            names, attempt.spare = attempt.spare, []
            self._emit(attempt, names, time)
        elif self._wants_own_vote(attempt, time):
            self._hand_over(attempt, refused)  # the home promises no round that others refuse (P7)
            if not attempt.is_over:
                attempt.has_own = True
                self._emit(attempt, [self._me], time)
        elif not self._may_win(attempt):
            self._lose(attempt, time)

    def _wants_own_vote(self, attempt: BatchAttempt, time: Time) -> bool:
        """Whether this peer's promise makes the round of others a quorum (P7)."""
        if attempt.has_own or attempt.phase is not Phase.PREPARE:
            return False
        is_enough = attempt.voters.is_quorum([*attempt.votes, self._me])
        return is_enough and (not attempt.waiting or self._is_late(attempt, time))

    def _is_late(self, attempt: BatchAttempt, time: Time) -> bool:
        """Whether voters have not answered for so long that others are asked, too."""
        return time.steady >= attempt.begins + _PATIENCE_MS

    def _may_win(self, attempt: BatchAttempt) -> bool:
        names = {*attempt.votes, *attempt.waiting}
        if attempt.phase is Phase.PREPARE and not attempt.has_own:
            names.add(self._me)
        return attempt.voters.is_quorum(names)

    def _evaluate_accept(self, attempt: BatchAttempt, time: Time) -> None:
        if attempt.has_quorum:
            if not attempt.refused:
                self._choose(attempt)
            elif chosen := attempt.chosen():
                part = attempt.part(chosen)
                attempt.without(chosen)
                self._choose(part)
                if not attempt.keys:
                    self._close(attempt)
        if attempt.is_over or attempt.waiting:
            return
        self._hand_over(attempt, attempt.refused)
        if not attempt.is_over:
            self._lose(attempt, time)

    def _choose(self, attempt: BatchAttempt) -> None:
        """Answer for accepts that are chosen (P3)."""
        attempt.is_won = True
        self._owner.count(attempt.phase, len(attempt.keys), won=True)
        for name in attempt.voters.members:
            columns = attempt.votes.get(name)
            if columns is not None:
                self._miss(name, [attempt.keys[place] for place in sorted(columns.refused)])
            elif name not in attempt.waiting:
                self._miss(name, attempt.keys)
        self._close(attempt)
        self._owner.release(attempt.keys)
        attempt.batch.settle(attempt.places, attempt.outcomes)

    def _follow(self, attempt: BatchAttempt, time: Time) -> None:
        """Do what follows from the votes of a quorum: answer, and write what has to be written."""
        asks = attempt.phase is Phase.ASK
        last = Ballot(attempt.round, 0 if asks else -1, self._writer)
        planned = BatchPlan(attempt.requested, last, time.expired, emitted=attempt.emitted)
        decided = attempt.decide(planned)
        self._owner.count(attempt.phase, len(attempt.keys), won=True)
        self._close(attempt)
        for following in _following(attempt, decided):
            self._open[following] = None
            self._start(following, time)
        self._give_back(attempt, decided.rest)
        answered = decided.answered
        self._owner.release([attempt.keys[position] for position in answered])
        attempt.batch.settle([attempt.places[place] for place in answered], decided.answers)

    def _lose(self, attempt: BatchAttempt, time: Time) -> None:
        """Repeat a round that was lost because voters are silent (P5)."""
        self._owner.count(attempt.phase, len(attempt.keys), won=False)
        self._close(attempt)
        if attempt.lost >= _MAX_LOST:
            self._give_back(attempt, range(len(attempt.keys)))
            return
        again = attempt.again()
        pause = self._random() * _PAUSE_MS * 2 ** min(attempt.lost, _MAX_DOUBLINGS)
        again.begins = time.steady + round(pause)
        self._open[again] = None

    def _close(self, attempt: BatchAttempt) -> None:
        attempt.is_over = True
        self._open.pop(attempt, None)

    def _hand_over(self, attempt: BatchAttempt, positions: Collection[int]) -> None:
        """Let registers leave a batch; it ends without any."""
        if positions:
            self._give_back(attempt, sorted(positions))
            attempt.without(positions)
            if not attempt.keys:
                self._close(attempt)

    def _give_back(self, attempt: BatchAttempt, positions: Sequence[int]) -> None:
        if positions:
            votes = {
                name: [columns.vote(position) for position in positions]
                for name, columns in attempt.votes.items()
            }
            self._owner.give_back(attempt, positions, votes)

    # -- output

    def tick(self, time: Time) -> list[tuple[str, int, Message]]:
        """Return (voter, correlation id, request) for each message to send now."""
        while self._until and self._until[0][0] <= time.steady:
            self.answered(self._until.popleft()[1], None, time)
        for attempt in list(self._open):
            if attempt.is_over:
                continue
            if not attempt.is_sent:
                if attempt.begins <= time.steady:
                    self._begin(attempt, time)
            elif attempt.until <= time.steady:
                self._expire(attempt, time)
            elif self._wants_own_vote(attempt, time) or (
                attempt.spare and self._is_late(attempt, time)
            ):
                self._evaluate(attempt, time)
        return self._messages()

    def _begin(self, attempt: BatchAttempt, time: Time) -> None:
        """Start a new batch: prepare at once what probably has to be written (P8)."""
        if attempt.phase is Phase.ASK and not attempt.lost:
            likely = self._likely_writes(attempt, time)
            if len(likely) == len(attempt.keys):
                attempt.phase = Phase.PREPARE
            elif likely:
                writes = attempt.following(Phase.PREPARE, likely, (), ())
                attempt.without(likely)
                self._open[writes] = None
                self._start(writes, time)
        self._start(attempt, time)

    def _likely_writes(self, attempt: BatchAttempt, time: Time) -> list[int]:
        """Return the positions of operations that write if others hold what this peer holds."""
        if attempt.requested.common is None:
            return []
        peek, likely = self._peek, []
        nothing = Ballot(0, 0, self._writer)
        planned = BatchPlan(attempt.requested, nothing, time.expired, emitted=False)
        for position, (place, key) in enumerate(zip(attempt.places, attempt.keys, strict=True)):
            held = peek(key)
            if held != UNKNOWN and planned.written(place, key, held, 0).record:
                likely.append(position)
        return likely

    def _start(self, attempt: BatchAttempt, time: Time) -> None:
        names: Sequence[str] = attempt.voters.members
        if attempt.phase is Phase.ASK:
            names = _quorum_with(self._me, attempt.voters)
            attempt.spare = [name for name in attempt.voters.members if name not in names]
        elif attempt.phase is Phase.PREPARE:
            attempt.round = max(time.cluster, attempt.round + 1)
            attempt.has_own = attempt.voters.is_quorum([self._me])
            if not attempt.has_own:
                names = [name for name in names if name != self._me]
        attempt.emitted = attempt.emitted or attempt.phase is Phase.ACCEPT
        attempt.begins = time.steady
        self._emit(attempt, names, time)

    def _expire(self, attempt: BatchAttempt, time: Time) -> None:
        """End the time of voters to answer. An accept is sent again unchanged (P2)."""
        if attempt.phase is Phase.ACCEPT and attempt.sent < _MAX_SENT:
            self._emit(attempt, sorted(attempt.waiting), time)
        else:
            attempt.waiting.clear()
            self._evaluate(attempt, time)

    def _emit(self, attempt: BatchAttempt, names: Sequence[str], time: Time) -> None:
        attempt.waiting.update(names)
        attempt.sent += 1
        attempt.until = time.steady + _ANSWER_MS + _ANSWER_OF_KEY_MS * len(attempt.keys)
        self._due.append((attempt, names))

    def _messages(self) -> list[tuple[str, int, Message]]:
        due, self._due = self._due, []
        messages = []
        for attempt, names in due:
            if attempt.is_over:
                continue
            own = batch_message(attempt, self._writer) if self._me in names else None
            message = batch_message(attempt, self._writer, with_records=False)
            for name in names:
                correlation = next(self._correlations)
                self._sent[correlation] = _Sent(name, attempt, attempt.keys)
                self._until.append((attempt.until + _LATE_MS, correlation))
                sent = own if own is not None and name == self._me else message
                messages.append((name, correlation, sent))
        return messages

    def _due_at(self, attempt: BatchAttempt) -> int:
        if not attempt.is_sent:
            return attempt.begins
        is_own_left = attempt.phase is Phase.PREPARE and not attempt.has_own and attempt.votes
        if attempt.spare or is_own_left:
            return min(attempt.until, attempt.begins + _PATIENCE_MS)
        return attempt.until


def _following(attempt: BatchAttempt, decided: Decided) -> Iterator[BatchAttempt]:
    """Yield the attempts for the registers that must be written, in messages of limited size."""
    phase = Phase.PREPARE if attempt.phase is Phase.ASK else Phase.ACCEPT
    due = decided.due
    sizes = [0 if phase is Phase.PREPARE else len(record or b"") for record in decided.records]
    begin = weight = 0
    for end, size in enumerate([*sizes, _MAX_BYTES]):
        if end > begin and weight + size > _MAX_BYTES:
            yield attempt.following(
                phase, due[begin:end], decided.records[begin:end], decided.outcomes[begin:end]
            )
            begin, weight = end, 0
        weight += size
    if begin < len(due):
        yield attempt.following(
            phase, due[begin:], decided.records[begin:], decided.outcomes[begin:]
        )


def _quorum_with(me: str, voters: Voters) -> list[str]:
    """Return the first voters that are a quorum together with this peer."""
    names = [me]
    for name in voters.members:
        if not voters.is_quorum(names) and name != me:
            names.append(name)
    return names


def _reason(attempt: BatchAttempt) -> str:
    members = len(attempt.voters.members)
    return f"{len(attempt.votes)} of {members} replicas voted"
