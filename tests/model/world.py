"""The world of the model: replicas, proposers, readers, and what they may do next.

Each method is one step. ``walk.py`` chooses steps at random; the directed schedules of
``test_schedules.py`` call them in a certain order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from dstash.store.record import ABSENT, HEAD_BYTES, is_tombstone
from dstash.store.register.header import Header, is_collectable, split
from dstash.store.register.votes import Vote
from dstash.version import Stamp
from tests.model.operations import Base, Operation, Result, apply
from tests.model.placements import SCENARIOS, Epoch
from tests.model.replica import Replica, register

Chain = tuple[str, ...]


class Violation(Exception):
    """The register was not linearizable."""


class Message(NamedTuple):
    """A message that may arrive at any replica, at any time, several times."""

    epoch: int
    proposer: int
    #: 0 for an accept.
    round: int
    record: bytes = b""


@dataclass
class Proposal:
    """A proposer in a round: it prepares until ``base`` is known, then proposes one step."""

    operation: Operation
    epoch: int
    round: int
    repeated: bool
    promised: dict[str, Vote] = field(default_factory=dict)
    base: Base | None = None
    horizon: Stamp = 0
    is_agreed: bool = False
    step: int = -1
    result: Result | None = None
    record: bytes = b""
    accepted: set[str] = field(default_factory=set)


@dataclass
class Tenure:
    """A round that its proposer may continue."""

    epoch: int
    round: int
    step: int
    base: Base
    horizon: Stamp


@dataclass
class Reader:
    """A reader that asks replicas until enough of them agree."""

    epoch: int
    began: int
    answers: dict[str, Vote] = field(default_factory=dict)


class Observation(NamedTuple):
    """What a client saw: the chain, and when its call began and ended."""

    began: int
    ended: int
    chain: Chain
    operation: str


@dataclass
class Agreement:
    """An agreement on a horizon that is in progress."""

    epoch: int
    horizon: Stamp
    digests: dict[str, bytes] = field(default_factory=dict)
    informed: set[str] = field(default_factory=set)
    is_agreed: bool = False


class World:
    """One register in one scenario.

    Args:
        scenario: its name in ``SCENARIOS``.
        broken: the rule that is broken on purpose; empty for none.
    """

    def __init__(self, scenario: str, broken: str = "") -> None:
        self.scenario = SCENARIOS[scenario]
        self.broken = broken
        self.now = 0
        self.replicas = {name: self.make_replica(name) for name in self.scenario.names}
        self.newest_epoch = 1
        self.is_wiped = False
        self.messages: list[Message] = []
        self.proposals: dict[int, Proposal] = {}
        self.tenures: dict[int, Tenure] = {}
        #: By proposer, the highest round that it has heard of.
        self.heard = dict.fromkeys((1, 2, 3), 0)
        self.readers: list[Reader] = []
        self.agreement: Agreement | None = None
        #: The chain of the newest tombstone that a horizon has covered, for the checks only.
        self.collected: Chain = ()
        #: By record, the chain of operations that led to it, for the checks only.
        self.chains: dict[bytes, Chain] = {}
        self.observations: list[Observation] = []
        #: Operations that definitely failed.
        self.failed: set[str] = set()
        #: Operations whose clients have sent them more than once.
        self.resent: set[str] = set()
        self.repair: tuple[int, bytes] | None = None
        #: The stamp that floors are lowered to, and the replicas that have not done so yet.
        self.ceiling: Stamp = 0
        self.unlowered: set[str] = set()

    def make_replica(self, name: str) -> Replica:
        """Return a replica."""
        return Replica(name, self.broken)

    def epoch(self, number: int) -> Epoch | None:
        """Return the placement of an epoch; None for one that does not exist."""
        return self.scenario.epochs.get(number)

    # -- checks

    def observe(self, began: int, chain: Chain, operation: str) -> None:
        """Check what a client sees now, and remember it."""
        for seen in self.observations:
            shorter, longer = sorted((seen.chain, chain), key=len)
            if longer[: len(shorter)] != shorter:
                raise Violation(f"fork: {seen.operation} saw {seen.chain}, {operation} {chain}")
            if seen.ended < began and len(chain) < len(seen.chain):
                raise Violation(f"back in time: {seen.chain}, then {operation} saw {chain}")
        if len(set(chain)) != len(chain):
            raise Violation(f"applied twice: {chain}")
        if self.failed & set(chain):
            raise Violation(f"applied although it failed: {self.failed & set(chain)} in {chain}")
        self.observations.append(Observation(began, self.now, chain, operation))

    def chain_of(self, record: bytes | None) -> Chain:
        """Return the chain of a record as voters report it; None is absent."""
        return self.collected if record is None else self.chains[record]

    def agreed(self, epoch: Epoch, answers: dict[str, Vote]) -> Vote | None:
        """Return an answer that is chosen, because an agreement quorum gave it (T1)."""
        sides: tuple[str, ...] = (epoch.readers,)
        if epoch.is_before_switch and self.broken != "agrees_on_old_side":
            sides = epoch.sides
        for version in {answer.version for answer in answers.values()}:
            names = {name for name, answer in answers.items() if answer.version == version}
            if epoch.has_majorities(names, sides):
                return next(answers[name] for name in sorted(names))
        return None

    # -- proposers

    def begin(
        self,
        proposer: int,
        operation: Operation,
        epoch: int,
        advance: int = 1,
        *,
        repeated: bool = False,
    ) -> None:
        """Begin an operation: in the tenure of the proposer if it has one, else in a new round.

        Args:
            proposer: its number.
            operation: the operation.
            epoch: the epoch of its messages.
            advance: how far a new round is above the highest that the proposer has heard of.
            repeated: whether the client has sent the request before (D7).
        """
        if repeated:
            self.resent.add(operation.name)
        tenure = self.tenures.get(proposer)
        if tenure is not None and tenure.epoch == epoch:
            self.proposals[proposer] = Proposal(
                operation,
                epoch,
                tenure.round,
                repeated,
                base=tenure.base,
                step=tenure.step,
                horizon=tenure.horizon,
            )
            return
        self.tenures.pop(proposer, None)
        self.heard[proposer] += advance
        self.proposals[proposer] = Proposal(operation, epoch, self.heard[proposer], repeated)
        self.messages.append(Message(epoch, proposer, self.heard[proposer]))

    def give_up(self, proposer: int) -> None:
        """End a proposal and its tenure: the outcome stays unknown."""
        self.proposals.pop(proposer, None)
        self.tenures.pop(proposer, None)

    def deliver(self, message: Message, name: str) -> None:
        """Deliver a message to a replica."""
        replica, epoch = self.replicas[name], self.epoch(message.epoch)
        is_newer = self.broken == "votes_across_epochs" and replica.epoch > message.epoch
        here = self.epoch(replica.epoch)
        if (replica.epoch != message.epoch and not is_newer) or epoch is None or here is None:
            return
        if name not in here.members:
            return
        if message.record:
            self._deliver_accept(message, replica)
        elif self.broken != "prepares_readers_only" or name in epoch.readers:
            self._deliver_prepare(message, replica)

    def _deliver_prepare(self, message: Message, replica: Replica) -> None:
        vote = replica.prepare(message.round, message.proposer)
        proposal = self.proposals.get(message.proposer)
        if vote.verdict:
            self._hear(message.proposer, vote)
        elif (
            proposal is not None
            and proposal.base is None
            and (proposal.round, proposal.epoch) == (message.round, message.epoch)
        ):
            proposal.promised[replica.name] = vote

    def _deliver_accept(self, message: Message, replica: Replica) -> None:
        vote = replica.accept(message.record)
        proposal = self.proposals.get(message.proposer)
        if vote.verdict:
            self._hear(message.proposer, vote)
        elif proposal is not None and proposal.record == message.record:
            proposal.accepted.add(replica.name)

    def _hear(self, proposer: int, vote: Vote) -> None:
        self.heard[proposer] = max(self.heard[proposer], vote.past)

    def advance(self, proposer: int) -> None:
        """Let a proposer take its next step, if it can."""
        proposal = self.proposals.get(proposer)
        if proposal is None:
            return
        epoch = self.scenario.epochs[proposal.epoch]
        if proposal.base is None:
            self._choose_base(proposal, epoch)
        elif not proposal.record:
            self._propose(proposer, proposal)
        elif epoch.has_majorities(proposal.accepted, epoch.sides):
            self._answer(proposer, proposal)

    def _choose_base(self, proposal: Proposal, epoch: Epoch) -> None:
        sides = epoch.sides
        if self.broken == "prepares_readers_only":
            sides = (epoch.readers,)
        if not epoch.has_majorities(set(proposal.promised), sides):
            return
        counted = {name: vote for name, vote in proposal.promised.items() if name in epoch.counted}
        if self.broken == "base_of_readers":
            counted = {name: vote for name, vote in counted.items() if name in epoch.readers}
        proposal.horizon = max(vote.horizon for vote in counted.values())
        answers = {
            name: _without_covered(vote, proposal.horizon)
            for name, vote in proposal.promised.items()
        }
        highest = max((answers[name] for name in counted), key=lambda vote: vote.version)
        proposal.base = Base(highest.record, self.chain_of(highest.record))
        agreed = self.agreed(epoch, answers)
        proposal.is_agreed = agreed is not None and agreed.version == highest.version

    def _propose(self, proposer: int, proposal: Proposal) -> None:
        assert proposal.base is not None
        result = apply(
            proposal.operation,
            proposal.base,
            proposal.horizon,
            repeated=proposal.repeated,
            broken=self.broken,
        )
        proposal.result = result
        if result.header is None and proposal.is_agreed:
            self._finish(proposer, proposal, proposal.base)
            return
        if self.broken == "answers_without_agreement" and proposal.operation.kind == "q":
            self._finish(proposer, proposal, proposal.base)
            return
        base, header = proposal.base.record, result.header
        deleted = result.deleted
        if header is None:  # the base is written again
            header, deleted = _same(base, proposal.horizon)
        proposal.step += 1
        proposal.record = register(proposal.round, proposal.step, proposer, header, deleted=deleted)
        self.chains.setdefault(proposal.record, result.chain)
        self.messages.append(Message(proposal.epoch, proposer, 0, proposal.record))

    def _answer(self, proposer: int, proposal: Proposal) -> None:
        assert proposal.result is not None
        self._finish(proposer, proposal, Base(proposal.record, proposal.result.chain))

    def _finish(self, proposer: int, proposal: Proposal, base: Base) -> None:
        """Answer the client, and keep the tenure."""
        operation, result = proposal.operation, proposal.result
        assert result is not None
        if result.outcome != "forgotten":
            self.observe(operation.began, result.chain, operation.name)
        is_final = f"!{operation.name}" in result.chain or operation.name not in self.resent
        is_final = is_final or self.broken == "repeated_conflict_leaves_no_entry"
        if result.outcome == "conflict" and is_final:
            self.failed.add(operation.name)
        self.tenures[proposer] = Tenure(
            proposal.epoch, proposal.round, proposal.step, base, proposal.horizon
        )
        del self.proposals[proposer]

    # -- readers

    def read(self, reader: Reader, name: str) -> bool:
        """Ask a replica; returns whether the reader has ended."""
        epoch, replica = self.scenario.epochs[reader.epoch], self.replicas[name]
        if replica.epoch != reader.epoch or name not in epoch.counted:
            return False
        reader.answers[name] = replica.ask()
        found = self.agreed(epoch, reader.answers)
        if found is not None:
            self.observe(reader.began, self.chain_of(found.record), "read")
        return found is not None or len(reader.answers) >= len(epoch.members)

    # -- repair, streaming, topology

    def copy(self, name: str) -> None:
        """Take the record of a replica for a repair, which may arrive much later."""
        replica = self.replicas[name]
        if replica.record is not None:
            self.repair = (replica.epoch, replica.record)

    def paste(self, name: str) -> None:
        """Merge the copied record into a replica."""
        if self.repair is not None and self.replicas[name].epoch == self.repair[0]:
            self.replicas[name].merge(self.repair[1])

    def wipe(self, name: str) -> None:
        """Lose the store of a replica; the topology notices, unless that rule is broken."""
        replica = self.replicas[name]
        replica.empty()
        replica.streamed_from.clear()
        self.is_wiped = True
        if self.broken != "amnesiac_votes":
            self.newest_epoch = replica.epoch = 2

    def stream(self, name: str, source: str) -> None:
        """Stream a replica from one source, and switch when all replicas are streamed."""
        replica, epoch = self.replicas[name], self.scenario.epochs[2]
        replica.epoch = max(replica.epoch, 2)
        if self.scenario.stays:
            replica.streamed_from.add(name)
        of = self.replicas[source]
        if source in epoch.readers and source in epoch.counted and of.epoch == replica.epoch == 2:
            replica.stream(of)
        streamed = [self.replicas[each] for each in self.scenario.streamed]
        is_done = all(item.is_concluded and len(item.streamed_from) >= 2 for item in streamed)
        if is_done and self.newest_epoch == 2:
            self.newest_epoch = 3

    # -- tombstone GC

    def agree(self, horizon: Stamp) -> None:
        """Begin an agreement on a horizon."""
        self.agreement = Agreement(self.newest_epoch, horizon)

    def end_agreement(self) -> None:
        """End an agreement, successful or not."""
        self.agreement = None
        for replica in self.replicas.values():
            replica.agreeing = 0

    def promise_floor(self, name: str) -> None:
        """Let a replica promise the floor and compute its digest."""
        agreement, replica = self.agreement, self.replicas[name]
        assert agreement is not None
        replica.floor = max(replica.floor, agreement.horizon)
        replica.agreeing = agreement.horizon
        agreement.digests[name] = replica.digest(agreement.horizon)
        readers = self.scenario.epochs[agreement.epoch].readers
        if len(agreement.digests) < len(readers):
            return
        if len(set(agreement.digests.values())) > 1:
            self.end_agreement()
            return
        agreement.is_agreed = True
        # A majority holds this version or a later one, so what was chosen led to it.
        held = sorted((self.replicas[reader] for reader in readers), key=lambda item: item.version)
        chosen = self.chain_of(held[-(len(readers) // 2 + 1)].record)
        for record in [replica.record for replica in held]:
            if record is None or not is_collectable(record, agreement.horizon):
                continue
            if chosen[: len(self.chains[record])] == self.chains[record]:
                self._cover(record)

    def set_horizon(self, name: str) -> None:
        """Set the agreed horizon on a replica."""
        agreement, replica = self.agreement, self.replicas[name]
        assert agreement is not None
        replica.horizon = max(replica.horizon, agreement.horizon)
        replica.agreeing = 0
        agreement.informed.add(name)
        if len(agreement.informed) == len(self.scenario.epochs[agreement.epoch].readers):
            self.end_agreement()

    def begin_lowering(self, ceiling: Stamp) -> None:
        """Begin an epoch in which replicas lower their floors and horizons, one after the other.

        Messages of earlier epochs are refused, and promises of floors are withdrawn.
        """
        self.ceiling = ceiling
        self.end_agreement()
        self.messages.clear()
        self.repair = None
        for proposer in list(self.proposals):
            self.give_up(proposer)
        self.tenures.clear()
        self.unlowered = set(self.scenario.epochs[self.newest_epoch].readers)

    def lower(self, name: str) -> None:
        """Lower the floor and horizon of a replica; rounds stay above all horizons (T7)."""
        readers = self.scenario.epochs[self.newest_epoch].readers
        others = [self.replicas[each] for each in readers]
        horizons = [max(other.horizon, other.lowered) for other in others]
        replica = self.replicas[name]
        if self.broken == "lowers_rounds_too":
            horizons = []
        replica.lowered = max([replica.lowered, *horizons])
        replica.floor, replica.horizon = (
            min(replica.floor, self.ceiling),
            min(replica.horizon, self.ceiling),
        )
        self.unlowered.discard(name)

    def collect_by_timer(self, name: str) -> None:
        """Drop a tombstone without any agreement, as a broken rule."""
        replica = self.replicas[name]
        record = replica.record
        if record is not None and is_tombstone(record):
            self._cover(record)
            replica.store.records.clear()

    def _cover(self, record: bytes) -> None:
        self.collected = max(self.collected, self.chains[record], key=len)


def _without_covered(vote: Vote, horizon: Stamp) -> Vote:
    """Return a vote in which a record that a horizon covers is absent (P1)."""
    if vote.record is None or not is_collectable(vote.record, horizon):
        return vote
    return vote._replace(version=ABSENT, record=None)


def _same(record: bytes | None, horizon: Stamp) -> tuple[Header, bool]:
    """Return the header of a step that repeats its base; a tombstone where nothing is held."""
    if record is None:
        return Header(0, forgotten=horizon), True
    return split(record[HEAD_BYTES:])[0], is_tombstone(record)
