"""A random walk through the steps of a world, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from dstash.version import stamp_at
from tests.model.operations import Operation
from tests.model.world import Message, Reader, Violation, World

_PROPOSERS: Final = (1, 2, 3)
_STEPS: Final = 300

#: How often each kind of step is chosen: with many faults, with few, during a change.
_KINDS: Final = (
    *("begin", "deliver", "advance", "read", "repair", "crash", "topology", "collect"),
)
_WEIGHTS: Final = (
    (10, 30, 20, 12, 10, 6, 6, 6),
    (6, 30, 14, 10, 14, 2, 4, 20),
    (8, 30, 18, 10, 8, 4, 18, 4),
    (5, 45, 16, 12, 1, 1, 20, 1),
)


class Walk:
    """A random walk.

    Args:
        scenario: the name of a scenario.
        broken: the rule that is broken; empty for none.
        seed: of all choices.
        lowers: whether floors and horizons are lowered now and then.
    """

    def __init__(self, scenario: str, broken: str, seed: int, *, lowers: bool = False) -> None:
        self.world = World(scenario, broken)
        self._random = Random(seed)
        self._weights = self._random.choice(_WEIGHTS)
        self._steps: dict[str, Callable[[], None]] = {
            "begin": self._begin,
            "deliver": self._deliver,
            "advance": lambda: self.world.advance(self._random.choice(_PROPOSERS)),
            "read": self._read,
            "repair": self._repair,
            "crash": self._crash,
            "topology": self._change_topology,
            "collect": self._collect,
        }
        self._lowers = lowers
        self._replicas = list(self.world.replicas)
        self._serial = 0
        #: Operations whose outcome is unknown, and copies of requests that arrive late.
        self._unknown: list[Operation] = []
        self._late: list[Operation] = []

    def run(self) -> str:
        """Walk to the end; returns the violation that was found, or an empty text."""
        try:
            for _ in range(_STEPS):
                self.world.now += 1
                [name] = self._random.choices(_KINDS, self._weights)
                self._steps[name]()
        except Violation as violation:
            return str(violation)
        return ""

    def _some_epoch(self) -> int:
        return self.world.replicas[self._random.choice(self._replicas)].epoch

    def _begin(self) -> None:
        world, rng = self.world, self._random
        proposer = rng.choice(_PROPOSERS)
        if proposer in world.proposals:
            if rng.random() < 0.5:
                world.give_up(proposer)
            return
        epoch = self._some_epoch()
        if world.epoch(epoch) is None:
            return
        operation, repeated = self._next_operation()
        world.begin(proposer, operation, epoch, rng.choice((1, 1, 2, 5)), repeated=repeated)

    def _next_operation(self) -> tuple[Operation, bool]:
        """Return an operation, and whether its client sends it again."""
        world, rng = self.world, self._random
        answered = {seen.operation for seen in world.observations} | world.failed
        self._unknown = [each for each in self._unknown if each.name not in answered]
        if self._late and rng.random() < 0.3:
            return self._late.pop(rng.randrange(len(self._late))), False
        if self._unknown and rng.random() < 0.5:
            return rng.choice(self._unknown), True
        self._serial += 1
        stamp = stamp_at(max(world.heard.values()), self._serial)
        operation = Operation(rng.choice("aawddq"), stamp, world.now)
        if operation.kind == "q":
            return operation, False
        self._unknown.append(operation)
        if rng.random() < 0.2:  # the first copy is late, and the client sends a second
            self._late.append(operation)
            return operation, True
        return operation, False

    def _deliver(self) -> None:
        rng, messages = self._random, self.world.messages
        if messages:
            recent = messages[-12:] if rng.random() < 0.7 else messages
            message: Message = rng.choice(recent)
            self.world.deliver(message, rng.choice(self._replicas))

    def _read(self) -> None:
        world, rng = self.world, self._random
        if len(world.readers) < 2:
            epoch = self._some_epoch()
            if world.epoch(epoch) is not None:
                world.readers.append(Reader(epoch, world.now))
            return
        reader = rng.choice(world.readers)
        name = rng.choice(world.scenario.epochs[reader.epoch].members)
        is_over = world.replicas[name].epoch != reader.epoch and rng.random() < 0.2
        if world.read(reader, name) or is_over:
            world.readers.remove(reader)

    def _repair(self) -> None:
        epoch = self.world.epoch(self._some_epoch())
        if epoch is None:
            return
        if self._random.random() < 0.5:
            self.world.copy(self._random.choice(epoch.readers))
        self.world.paste(self._random.choice(epoch.readers))

    def _crash(self) -> None:
        name = self._random.choice(self._replicas)
        if self.world.broken == "promises_not_kept":
            self.world.replicas[name].forget_promise()
        if self._random.random() < 0.5:
            self.world.give_up(self._random.choice(_PROPOSERS))

    def _change_topology(self) -> None:
        world, rng, scenario = self.world, self._random, self.world.scenario
        if rng.random() < 0.5:
            replica = world.replicas[rng.choice(self._replicas)]
            replica.epoch += replica.epoch < world.newest_epoch
            return
        if scenario.wiped and not world.is_wiped:
            if rng.random() < 0.3:
                world.wipe(scenario.wiped)
        elif world.newest_epoch == 1 and scenario.last > 1 and not scenario.wiped:
            if rng.random() < 0.3:
                world.newest_epoch = 2
        elif world.newest_epoch == 2:
            name = rng.choice(scenario.streamed)
            sources = [each for each in scenario.epochs[2].readers if each != name]
            world.stream(name, rng.choice(sources))
        elif world.newest_epoch == 3 and scenario.last > 3:
            old = scenario.epochs[1].readers
            if len([name for name in old if world.replicas[name].epoch >= 3]) > len(old) // 2:
                world.newest_epoch = 4

    def _collect(self) -> None:
        world, rng = self.world, self._random
        epoch = world.scenario.epochs[world.newest_epoch]
        is_quiet = world.newest_epoch in (1, world.scenario.last)
        if not is_quiet or any(
            world.replicas[name].epoch != world.newest_epoch for name in epoch.readers
        ):
            world.end_agreement()
            return
        if self._lowers and self._lower():
            return
        if world.broken == "collects_by_timer":
            world.collect_by_timer(rng.choice(epoch.readers))
        elif rng.random() < 0.3:
            world.replicas[rng.choice(epoch.readers)].collect()
        elif world.agreement is None or world.agreement.epoch != world.newest_epoch:
            world.end_agreement()
            newest = max(replica.round for replica in world.replicas.values())
            world.agree(stamp_at(newest - rng.choice((0, 0, 1)) + 1) - 1)
        elif world.agreement.is_agreed:
            world.set_horizon(rng.choice(sorted(set(epoch.readers) - world.agreement.informed)))
        else:
            missing = set(epoch.readers) - world.agreement.digests.keys()
            world.promise_floor(rng.choice(sorted(missing)))

    def _lower(self) -> bool:
        """Take a step of lowering floors, at random; returns whether it did.

        No horizon is agreed on before all replicas have lowered theirs.
        """
        world, rng = self.world, self._random
        if world.unlowered:
            if rng.random() < 0.5:
                world.lower(rng.choice(sorted(world.unlowered)))
            return True
        if rng.random() < 0.9:
            return False
        newest = max(replica.round for replica in world.replicas.values())
        world.begin_lowering(stamp_at(rng.randint(0, newest)))
        # Copies of earlier requests are refused, as are repeated ones without a trace (D6).
        self._late.clear()
        self._unknown.clear()
        return True
