"""The world with the proposers of peers (``dstash/peer/registers``), on the modelled replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from dstash.peer.registers import operations
from dstash.peer.registers.attempt import Attempt, Phase
from dstash.peer.registers.pending import Answer, Pending
from dstash.peer.registers.proposer import Proposer, Time
from dstash.peer.registers.quorum import Voters
from dstash.store.interface import Write
from dstash.store.record import is_sound, partition_of
from dstash.store.register.voter import Bounds, Verdict
from dstash.store.register.votes import Vote
from dstash.version import MAX_STAMP, Stamp, stamp_at
from dstash.wire.registers import MISSING, ChangeKind, ChangeOutcome
from tests.model.operations import Operation
from tests.model.placements import Epoch
from tests.model.replica import KEY, STORAGE_KEY, Replica, writer
from tests.model.walk import Walk
from tests.model.world import Chain, Reader, World

_KINDS: Final = {"a": ChangeKind.PUT, "w": ChangeKind.PUT, "d": ChangeKind.DELETE}

#: Longer than any attempt: a step of time after which silent voters have given no vote.
_PATIENCE_MS: Final = 10_000


def voters_of(epoch: Epoch) -> Voters:
    """Return the voters of an epoch."""
    sides = tuple(dict.fromkeys(map(frozenset, epoch.sides)))
    return Voters(tuple(epoch.members), sides, frozenset(epoch.counted))


def real(operation: Operation, *, repeated: bool) -> operations.Operation | None:
    """Return an operation as peers have it; None for a read."""
    if operation.kind == "q":
        return None
    terms = {"expected": MISSING} if operation.kind == "a" else {}
    return operations.Operation(
        _KINDS[operation.kind],
        operation.caller,
        operation.number,
        repeated=repeated,
        value=b"\x01",
        **terms,
    )


@dataclass
class Sent:
    """A request for votes that may arrive at any replica, at any time, several times."""

    epoch: int
    proposer: Proposer
    attempt: Attempt


@dataclass
class Waiting:
    """An operation at a proposer; ``number`` is that of its home."""

    operation: Operation
    answer: Answer | None = None


class Homes(World):
    """The world of the model with the proposers of peers."""

    def __init__(self, scenario: str, broken: str = "") -> None:
        super().__init__(scenario, broken)
        self.sent: list[Sent] = []
        self.homes: dict[int, tuple[int, Proposer]] = {}
        self.steady = 0
        self.chances: Callable[[], float] = Random(1).random
        self._waiting: dict[int, Waiting] = {}
        self._plans: dict[int, list[tuple[Pending, Chain]]] = {}
        self._pendings: dict[int, list[Pending]] = {1: [], 2: [], 3: []}

    def time(self, number: int = 0, advance: int = 0) -> Time:
        """Return the time; the cluster clock is what a proposer has heard, and some more."""
        return Time(self.steady, self.heard.get(number, 0) + advance, 0)

    def begin_at(self, number: int, operation: Operation, epoch: int, *, repeated: bool) -> None:
        """Send an operation to a home."""
        if repeated:
            self.resent.add(operation.name)
        known = self.homes.get(number)
        placement = self.scenario.epochs[epoch]
        if known is None:
            proposer = Proposer(STORAGE_KEY, voters_of(placement), "", writer(number), self.chances)
            self.homes[number] = (epoch, proposer)
        elif known[0] != epoch:
            proposer = known[1]
            proposer.abandon()
            proposer.voters = voters_of(placement)
            self.homes[number] = (epoch, proposer)
        proposer = self.homes[number][1]
        waiting = Waiting(operation)

        def decide(answer: Answer) -> None:
            waiting.answer = answer

        pending = Pending(real(operation, repeated=repeated), decide)
        self._waiting[id(pending)] = waiting
        self._pendings[number].append(pending)
        proposer.queue.append(pending)

    def crash(self, number: int) -> None:
        """End the process of a home: the outcome of its operations stays unknown."""
        self.homes.pop(number, None)
        self._pendings[number] = []

    def step(self, number: int, advance: int, *, gives_up: bool) -> None:
        """Let a home send what it wants to send; it may give up what it waits for before."""
        known = self.homes.get(number)
        if known is None:
            return
        epoch, proposer = known
        if gives_up and proposer.attempt is not None:
            attempt = proposer.attempt
            self.steady += _PATIENCE_MS
            proposer.expire(attempt, self.time(number))
            self._follow(number, attempt)
        self.steady += 1000
        sent = proposer.next(self.time(number, advance))
        if sent is not None:
            self._emit(epoch, proposer, sent)

    def _emit(self, epoch: int, proposer: Proposer, attempt: Attempt) -> None:
        self.sent.append(Sent(epoch, proposer, attempt))
        if attempt.plan is None:
            return
        chain = self._chain_of_base(proposer)
        chains = []
        for item in attempt.plan.planned:
            if item.changes:
                name = self._waiting[id(item.pending)].operation.name
                is_applied = item.answer.outcome is ChangeOutcome.APPLIED
                chain = (*chain, name if is_applied else f"!{name}")
            chains.append((item.pending, chain))
        self.chains.setdefault(attempt.record, chain)
        self._plans[id(attempt)] = chains

    def _chain_of_base(self, proposer: Proposer) -> Chain:
        tenure = proposer.tenure
        return self.chain_of(tenure.record if tenure is not None else None)

    def arrive(self, sent: Sent, name: str) -> None:
        """Deliver a request for votes to a replica, and its vote to the home."""
        replica, epoch = self.replicas[name], self.epoch(sent.epoch)
        here = self.epoch(replica.epoch)
        if replica.epoch != sent.epoch or epoch is None or here is None:
            return
        if name not in here.members:
            return
        attempt, proposer = sent.attempt, sent.proposer
        number = int.from_bytes(proposer._writer, "big")
        if attempt.phase is Phase.ACCEPT:
            vote = replica.accept(attempt.record)
        elif attempt.phase is Phase.PREPARE:
            vote = replica.prepare(attempt.round, number, is_needed=attempt.is_needed)
        else:
            vote = replica.ask()
        if self.homes.get(number, (0, None))[1] is not proposer:
            return
        self.heard[number] = max(self.heard[number], vote.past)
        if proposer.attempt is attempt:
            proposer.take(attempt, name, vote, self.time(number))
            self._follow(number, attempt)

    def _follow(self, number: int, attempt: Attempt) -> None:
        epoch, proposer = self.homes[number]
        following = proposer.attempt
        if following is not None and following is not attempt:
            self._emit(epoch, proposer, following)
        decided = [pending for pending in self._pendings[number] if pending.is_decided]
        for pending in decided:
            self._pendings[number].remove(pending)
            self._observe(self._waiting.pop(id(pending)), self._seen(attempt, pending))

    def _seen(self, attempt: Attempt, pending: Pending) -> Chain:
        """Return the chain that an answer has shown."""
        for planned, chain in self._plans.get(id(attempt), ()):
            if planned is pending:
                return chain
        shown = attempt.shown()
        version = attempt.agreed(shown)
        assert version is not None
        return self.chain_of(attempt.record_of(version) if any(version) else None)

    def _observe(self, waiting: Waiting, chain: Chain) -> None:
        operation, answer = waiting.operation, waiting.answer
        assert answer is not None
        if answer.outcome is ChangeOutcome.REJECTED:
            return  # the outcome is unknown
        is_final = f"!{operation.name}" in chain or operation.name not in self.resent
        if answer.outcome is ChangeOutcome.FORGOTTEN:
            if operation.name not in self.resent:
                self.failed.add(operation.name)
            return
        self.observe(operation.began, chain, operation.name)
        if answer.outcome in (ChangeOutcome.CONFLICT, ChangeOutcome.UNCHANGED) and is_final:
            self.failed.add(operation.name)


class HomesWalk(Walk):
    """A random walk with the proposers of peers."""

    world: Homes
    homes: type[Homes] = Homes

    def __init__(self, scenario: str, broken: str, seed: int) -> None:
        super().__init__(scenario, broken, seed)
        self.world = self.homes(scenario, broken)
        self.world.chances = self._random.random
        self._steps["advance"] = self._advance

    def _begin(self) -> None:
        rng = self._random
        epoch = self._some_epoch()
        if self.world.epoch(epoch) is not None:
            operation, repeated = self._next_operation()
            self.world.begin_at(rng.choice((1, 2, 3)), operation, epoch, repeated=repeated)

    def _advance(self) -> None:
        rng = self._random
        number, advance = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 5))
        self.world.step(number, advance, gives_up=rng.random() < 0.15)

    def _deliver(self) -> None:
        rng, sent = self._random, self.world.sent
        if sent:
            recent = sent[-6:] if rng.random() < 0.8 else sent
            self.world.arrive(rng.choice(recent), rng.choice(self._replicas))

    def _crash(self) -> None:
        super()._crash()
        if self._random.random() < 0.3:
            self.world.crash(self._random.choice((1, 2, 3)))


class RestingReplica(Replica):
    """A replica that is streamed as peers are (T2)."""

    @property
    def is_concluded(self) -> bool:
        """Return True: no promise has to be reached before streaming ends."""
        return True

    def stream(self, source: Replica) -> None:
        """Take the promises of a source, then its register."""
        rounds = [(STORAGE_KEY, source.promise.round)] if source.promise.round else []
        if self.broken == "streams_no_promises":
            rounds = []
        resting = [partition_of(KEY)]
        self.store.commit([Write([], 0, resting=resting, earlier=rounds)])
        super().stream(source)


class SealedHomes(Homes):
    """Homes as peers are: a register that a change moves is refused until the change has ended."""

    def make_replica(self, name: str) -> Replica:
        """Return a replica."""
        replica = RestingReplica(name, self.broken)
        replica.take_promise = lambda promise: None  # type: ignore[method-assign]
        return replica

    def is_sealed(self, number: int) -> bool:
        """Whether the change moves the register in an epoch."""
        return len(self.scenario.epochs[number].sides) > 1

    def arrive(self, sent: Sent, name: str) -> None:
        """Deliver a request for votes, unless the register moves."""
        if not self.is_sealed(sent.epoch):
            super().arrive(sent, name)

    def read(self, reader: Reader, name: str) -> bool:
        """Ask a replica, unless the register moves."""
        return self.is_sealed(reader.epoch) or super().read(reader, name)

    def agreed(self, epoch: Epoch, answers: dict[str, Vote]) -> Vote | None:
        """Return an answer that is chosen, without the replicas whose record is not settled."""
        settled = {name: vote for name, vote in answers.items() if vote.verdict is Verdict.VOTED}
        if self.broken == "unsettled_counts":
            settled = answers
        return super().agreed(epoch, settled)


class SealedWalk(HomesWalk):
    """A random walk in which moving registers are refused."""

    homes = SealedHomes


class ClockedReplica(RestingReplica):
    """A replica with a clock that may be set (V5), which bounds its promises, but no merges."""

    latest: Stamp = MAX_STAMP

    def bounds(self) -> Bounds:
        """Return the limits of votes."""
        return Bounds(self.floor, latest=self.latest)


class ClockedHomes(SealedHomes):
    """Homes whose replicas have clocks."""

    def make_replica(self, name: str) -> Replica:
        """Return a replica."""
        replica = ClockedReplica(name, self.broken)
        replica.take_promise = lambda promise: None  # type: ignore[method-assign]
        return replica

    def set_clock(self, name: str, number: int) -> None:
        """Set the latest round that a replica promises by its clock."""
        replica = self.replicas[name]
        if isinstance(replica, ClockedReplica):
            replica.latest = stamp_at(number)


class ClockedWalk(SealedWalk):
    """A random walk in which clocks are set forward and back."""

    world: ClockedHomes
    homes = ClockedHomes

    def _deliver(self) -> None:
        rng, rounds = self._random, [replica.round for replica in self.world.replicas.values()]
        if rng.random() < 0.2:
            number = rng.randrange(min(rounds), max(rounds) + 10)
            self.world.set_clock(rng.choice(self._replicas), number)
        super()._deliver()


class CorruptibleReplica(Replica):
    """A replica whose record may become corrupt on disk (V4)."""

    def empty(self) -> None:
        """Lose everything."""
        super().empty()
        self.corruption: dict[bytes, int] = {}

    def bounds(self) -> Bounds:
        """Return the limits of votes."""
        return Bounds(self.floor, high_water=self.store.high_water, corruption=self.corruption)

    @property
    def is_sound(self) -> bool:
        """Whether its record is sound, or absent."""
        return self.record is None or is_sound(STORAGE_KEY, self.record)

    def corrupt(self) -> None:
        """Change a byte of the record."""
        record = self.store.records.get(STORAGE_KEY)
        if record is not None and self.is_sound:
            self.store.records[STORAGE_KEY] = record[:-1] + bytes((record[-1] ^ 1,))


class CorruptHomes(Homes):
    """Homes whose replicas may have corrupt records."""

    def agreed(self, epoch: Epoch, answers: dict[str, Vote]) -> Vote | None:
        """Return an answer that is chosen, without the replicas whose record is corrupt."""
        sound = {name: vote for name, vote in answers.items() if vote.verdict is Verdict.VOTED}
        return super().agreed(epoch, sound)

    def make_replica(self, name: str) -> Replica:
        """Return a replica."""
        return CorruptibleReplica(name, self.broken)

    def copy(self, name: str) -> None:
        """Take the record of a replica for a repair, unless it is corrupt."""
        replica = self.replicas[name]
        if isinstance(replica, CorruptibleReplica) and replica.is_sound:
            super().copy(name)


class CorruptWalk(HomesWalk):
    """A random walk in which records become corrupt."""

    homes = CorruptHomes

    def __init__(self, scenario: str, broken: str, seed: int) -> None:
        super().__init__(scenario, broken, seed)
        self._steps["topology"] = self._corrupt
        self._steps["collect"] = self._deliver

    def _corrupt(self) -> None:
        replica = self.world.replicas[self._random.choice(self._replicas)]
        if isinstance(replica, CorruptibleReplica):
            replica.corrupt()
