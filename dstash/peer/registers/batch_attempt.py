"""One request for votes on many registers, and what the answers mean: ``Attempt`` for a batch.

The registers belong to one request of a client, and have the same voters. Their votes stay in the
columns in which they come. Here are only the registers on which voters agree: a register with
another answer leaves the batch, and has a proposer of its own from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from dstash.peer.registers.attempt import Phase
from dstash.peer.registers.batch_plan import BatchPlan
from dstash.peer.registers.pending import Answer, Batch
from dstash.peer.registers.quorum import Voters
from dstash.peer.registers.requested import Requested
from dstash.peer.registers.votes import Columns
from dstash.store.record import ABSENT, is_tombstone, version_of
from dstash.store.register.header import is_collectable
from dstash.version import VERSION_BYTES, Stamp
from dstash.wire.registers import unpack_numbers

T = TypeVar("T")


class Decided(NamedTuple):
    """What follows from the votes on a batch, by position in it.

    Attributes:
        answered: the registers that have their answers now.
        answers: these.
        due: the registers that must be written.
        records: to write; of an attempt that only asks, what the registers hold.
        outcomes: their answers, once these are chosen.
        rest: registers on which the voters disagree.
    """

    answered: list[int]
    answers: list[Answer]
    due: list[int]
    records: list[bytes | None]
    outcomes: list[Answer]
    rest: list[int]


@dataclass(eq=False, slots=True)
class BatchAttempt:
    """A request for votes on some registers of a request.

    Attributes:
        phase: what is asked for.
        round: that is prepared, or written in; 0 to ask.
        voters: who votes.
        batch: the request of a client, which takes the answers.
        requested: its operations.
        keys: the storage keys of the registers.
        places: of these in the request.
        records: those to be accepted; else those that the proposer knows, empty for none.
        outcomes: the answers for the registers once an accept is chosen.
        emitted: whether the operations were part of an accept that was sent.
        lost: how many rounds of these registers were lost.
        begins: when (steady milliseconds) it is sent.
        until: when voters that have not answered count as silent.
        waiting: voters that were asked and have not answered.
        votes: the answers.
        spare: voters that were not asked, because the others may be enough.
        has_own: whether the proposer's own promise was requested.
        sent: how many times it was sent.
        is_over: whether its registers have left it.
        is_won: whether its accepts are chosen.
    """

    phase: Phase
    round: int
    voters: Voters
    batch: Batch
    requested: Requested
    keys: Sequence[bytes]
    places: Sequence[int]
    records: Sequence[bytes | None] = ()
    outcomes: Sequence[Answer] = ()
    emitted: bool = False
    lost: int = 0
    begins: int = 0
    until: int = 0
    waiting: set[str] = field(default_factory=set)
    votes: dict[str, Columns] = field(default_factory=dict)
    spare: Sequence[str] = ()
    has_own: bool = False
    sent: int = 0
    is_over: bool = False
    is_won: bool = False

    @property
    def refused(self) -> set[int]:
        """The registers that a voter has refused, or which it holds unsettled."""
        return set().union(*(columns.refused for columns in self.votes.values()))

    @property
    def has_quorum(self) -> bool:
        """Whether a quorum has answered."""
        return self.voters.is_quorum(self.votes)

    @property
    def is_sent(self) -> bool:
        """Whether it was sent."""
        return bool(self.sent)

    def without(self, left_out: Collection[int]) -> None:
        """Remove the registers at some positions."""
        left = sorted(set(range(len(self.keys))).difference(left_out))
        self.keys, self.places = _only(self.keys, left), _only(self.places, left)
        self.records, self.outcomes = _only(self.records, left), _only(self.outcomes, left)
        self.votes = {name: columns.only(left) for name, columns in self.votes.items()}

    def part(self, positions: Collection[int]) -> BatchAttempt:
        """Return an attempt for the registers at some positions, with their votes."""
        kept = sorted(positions)
        part = self.following(
            self.phase, kept, _only(self.records, kept), _only(self.outcomes, kept)
        )
        part.waiting = set(self.waiting)
        part.votes = {name: columns.only(kept) for name, columns in self.votes.items()}
        return part

    def following(
        self,
        phase: Phase,
        positions: Sequence[int],
        records: Sequence[bytes | None],
        outcomes: Sequence[Answer],
    ) -> BatchAttempt:
        """Return the next attempt for the registers at some positions.

        Args:
            phase: what it asks for.
            positions: of the registers, in this attempt.
            records: of these.
            outcomes: of these.
        """
        return BatchAttempt(
            phase,
            self.round,
            self.voters,
            self.batch,
            self.requested,
            _only(self.keys, positions),
            _only(self.places, positions),
            records,
            outcomes,
            self.emitted,
            self.lost,
        )

    def again(self) -> BatchAttempt:
        """Return the first attempt of the next round, because this one was lost."""
        asks = self.requested.may_need_no_write and not self.emitted
        return BatchAttempt(
            Phase.ASK if asks else Phase.PREPARE,
            self.round,
            self.voters,
            self.batch,
            self.requested,
            self.keys,
            self.places,
            emitted=self.emitted,
            lost=self.lost + 1,
        )

    def chosen(self) -> set[int]:
        """Return the positions of accepts that a quorum has taken."""
        refused = {name: columns.refused for name, columns in self.votes.items()}
        return {
            position
            for position in range(len(self.keys))
            if self.voters.is_quorum([name for name in refused if position not in refused[name]])
        }

    def decide(self, planned: BatchPlan) -> Decided:
        """Return what follows from the votes of a quorum, none of which is refused (P1).

        Args:
            planned: applies the operations to what the registers hold.
        """
        columns = [item for name, item in self.votes.items() if name in self.voters.counted]
        held = columns[0].held
        differing = [item.held for item in columns[1:] if item.held != held]
        horizons = _highest([item.horizons for item in columns])
        decided = Decided([], [], [], [], [], [])
        answered, answers, due, records, outcomes, rest = decided
        is_bare = not differing and not held.strip(b"\0")
        keys, places, written = self.keys, self.places, planned.written
        base: bytes | None = None
        for position, key in enumerate(keys):
            horizon = horizons[position]
            if not is_bare:
                begin = VERSION_BYTES * position
                version = held[begin : begin + VERSION_BYTES]
                if any(other[begin : begin + VERSION_BYTES] != version for other in differing):
                    rest.append(position)
                    continue
                base = None
                if version != ABSENT:
                    base = self._record_of(position, version, columns)
                    if base is None:
                        rest.append(position)
                        continue
                    if is_tombstone(base) and is_collectable(base, horizon):
                        base = None
            record, answer = written(places[position], key, base, horizon)
            if record:
                due.append(position)
                outcomes.append(answer)
                records.append(base if self.phase is Phase.ASK else record)
            else:
                answered.append(position)
                answers.append(answer)
        return decided

    def _record_of(self, position: int, version: bytes, columns: Iterable[Columns]) -> bytes | None:
        """Return the record of a version; None if no voter has sent it."""
        known = self.records[position] if self.records else None
        if known is not None and version_of(known) == version:
            return known
        for item in columns:
            record = item.records[position]
            if record is not None and version_of(record) == version:
                return record
        return None


def _highest(horizons: Sequence[bytes]) -> Sequence[Stamp]:
    """Return the highest horizon for each register, from the columns of voters."""
    distinct = set(horizons)
    if len(distinct) == 1:
        return unpack_numbers(horizons[0])
    return [max(each) for each in zip(*map(unpack_numbers, distinct), strict=True)]


def _only(items: Sequence[T], positions: Sequence[int]) -> Sequence[T]:
    return [items[position] for position in positions] if items else items
