"""One request for votes on one register, and what the answers mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from dstash.peer.registers.plan import Plan
from dstash.peer.registers.quorum import Voters
from dstash.store.record import ABSENT, version_of
from dstash.store.register.header import is_collectable
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import Stamp, Version


class Phase(Enum):
    """What voters are asked for."""

    #: What they hold: a prepare of round 0, which promises nothing.
    ASK = "ask"
    PREPARE = "prepare"
    ACCEPT = "accept"


@dataclass(eq=False, slots=True)
class Attempt:
    """A request for votes on one register.

    Attributes:
        phase: what is asked for.
        round: that is prepared, or written in; 0 to ask.
        voters: who votes.
        known: the record that the proposer has, so that it is not sent again.
        covers: how many operations at the front of the queue had arrived before it was sent.
        record: that is to be accepted, and the plan that led to it.
        waiting: voters that have not answered.
        votes: the answers.
        until: when (steady milliseconds) voters that have not answered count as silent.
        began: when it was sent.
        is_needed: whether a round is ahead of the clocks because no quorum exists below it (P10).
    """

    phase: Phase
    round: int
    voters: Voters
    known: bytes | None
    covers: int
    until: int
    began: int
    record: bytes = b""
    plan: Plan | None = None
    is_needed: bool = False
    #: Whether the proposer's own promise was requested.
    has_own: bool = False
    waiting: set[str] = field(default_factory=set)
    votes: dict[str, Vote] = field(default_factory=dict)
    #: The members that have voted; of them, those that count and know what they hold.
    voted: list[str] = field(default_factory=list)
    sighted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = set(self.voters.members)

    def take(self, name: str, vote: Vote) -> None:
        """Take the answer of a member that has not answered yet."""
        self.waiting.discard(name)
        self.votes[name] = vote
        if vote.verdict not in _VOTES:
            return
        self.voted.append(name)
        if vote.verdict is not Verdict.BLIND and name in self.voters.counted:
            self.sighted.append(name)

    @property
    def is_won(self) -> bool:
        """Whether a quorum has voted, and shown enough of what it holds (V4)."""
        return self.voters.is_quorum(self.voted) and self.voters.have_all(self.sighted)

    @property
    def is_lost(self) -> bool:
        """Whether no quorum can vote any more."""
        rest = self.waiting
        has_quorum = self.voters.is_quorum([*self.voted, *rest])
        return not (has_quorum and self.voters.have_all([*self.sighted, *rest]))

    @property
    def has_heard_quorum(self) -> bool:
        """Whether a quorum has answered, by a vote or a refusal."""
        return self.voters.is_quorum(self.votes.keys())

    def is_held_up(self, number: int) -> bool:
        """Whether no quorum exists without voters that may have promised rounds from ``number`` on.

        They have promised one, or do not know what they have promised (V4). The others are enough
        only if those of them whose records are sound can show what a quorum holds.
        """
        ahead = {
            name
            for name, vote in self.votes.items()
            if vote.verdict in (Verdict.PREEMPTED, Verdict.CORRUPT) and vote.past >= number
        }
        rest = [name for name in self.voters.members if name not in ahead]
        sighted = [
            name
            for name in rest
            if name not in self.votes or self.votes[name].verdict not in _WITHOUT_SIGHT
        ]
        return not (self.voters.is_quorum(rest) and self.voters.have_all(sighted))

    @property
    def past(self) -> int:
        """The highest round that a later one must exceed."""
        return max((vote.past for vote in self.votes.values()), default=0)

    @property
    def horizon(self) -> Stamp:
        """The highest horizon of counted members that have voted."""
        return max((self.votes[name].horizon for name in self.sighted), default=0)

    def shown(self) -> Shown:
        """Return what the members that have voted hold (P1)."""
        horizon = self.horizon
        held = {name: self._held(self.votes[name], horizon) for name in self.sighted}
        return Shown(held, horizon)

    def _held(self, vote: Vote, horizon: Stamp) -> Version:
        record = self.record_of(vote.version)
        is_covered = record is not None and is_collectable(record, horizon)
        return ABSENT if is_covered else vote.version

    def agreed(self, shown: Shown, others: Iterable[str] = ()) -> Version | None:
        """Return the version that a quorum has shown (T1), with some others; None if none has."""
        settled = {
            name: version
            for name, version in shown.held.items()
            if self.votes[name].verdict is Verdict.VOTED
        }
        rest = list(others)
        versions: set[Version] = {ABSENT, *settled.values()}
        for version in versions:
            names = [name for name, other in settled.items() if other == version]
            if self.voters.is_quorum([*names, *rest]):
                return version
        return None

    def may_agree(self, shown: Shown) -> bool:
        """Whether members that have not answered can make a version one that a quorum shows."""
        return bool(self.waiting) and self.agreed(shown, self.waiting) is not None

    def awaits_record(self, version: Version) -> bool:
        """Whether only members that have not answered can show the record of a version.

        The answers of other peers lack records that do not fit; that of this peer lacks none.
        """
        return bool(self.waiting) and version != ABSENT and self.record_of(version) is None

    def record_of(self, version: Version) -> bytes | None:
        """Return the record of a version that was shown; None if nothing is held."""
        known = self.known
        if known is not None and version_of(known) == version:
            return known
        for vote in self.votes.values():
            if vote.record is not None and vote.version == version:
                return vote.record
        return None


#: Verdicts that are votes.
_VOTES = frozenset({Verdict.VOTED, Verdict.UNSETTLED, Verdict.BLIND})
#: Verdicts of voters whose record is corrupt: what they held is unknown.
_WITHOUT_SIGHT = frozenset({Verdict.CORRUPT, Verdict.BLIND})


class Shown:
    """By member, the version that it holds; all zero for none, or what a horizon covers."""

    __slots__ = ("held", "horizon")

    def __init__(self, held: Mapping[str, Version], horizon: Stamp) -> None:
        self.held = held
        self.horizon = horizon

    @property
    def highest(self) -> Version:
        """The highest version."""
        return max(self.held.values(), default=ABSENT)
