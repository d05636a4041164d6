"""The schedules that refuted earlier forms of the rules, in the order in which they go wrong.

Each runs with a rule broken, and must end in a violation; and with all rules, and must not.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from dstash.version import stamp_at
from tests.model.operations import Operation
from tests.model.world import Reader, Violation, World


class Schedule:
    """Steps of a world in which replica A of A, B, C is replaced by D."""

    def __init__(self, broken: str) -> None:
        self.world = World("replace1", broken)
        self._serials = count(1)

    def enter(self, epoch: int, names: str = "ABCD") -> None:
        """Let replicas take note of an epoch, which the topology must have reached."""
        self.world.newest_epoch = max(self.world.newest_epoch, epoch)
        for name in names:
            self.world.replicas[name].epoch = epoch

    def prepare(self, proposer: int, kind: str, round_: int, epoch: int, names: str) -> None:
        """Begin an operation in a new round, and deliver the request for promises."""
        world = self.world
        world.now += 1
        world.heard[proposer] = round_ - 1
        operation = Operation(kind, stamp_at(5000, next(self._serials)), world.now)
        world.begin(proposer, operation, epoch)
        for name in names:
            world.deliver(world.messages[-1], name)

    def accept(self, proposer: int, names: str) -> None:
        """Let a proposer compute its step, deliver it, and answer if a quorum has taken it."""
        world = self.world
        world.advance(proposer)
        world.advance(proposer)
        if proposer in world.proposals and world.proposals[proposer].record:
            for name in names:
                world.deliver(world.messages[-1], name)
            world.advance(proposer)
        world.now += 1

    def abandon(self, proposer: int) -> None:
        """End a proposer."""
        self.world.give_up(proposer)

    def stream(self, sources: str) -> bool:
        """Stream D; returns whether that has ended."""
        for source in sources:
            self.world.stream("D", source)
        return self.world.newest_epoch > 2

    def read(self, epoch: int, names: str) -> None:
        """Read from some replicas."""
        reader = Reader(epoch, self.world.now)
        ended = [self.world.read(reader, name) for name in names]
        assert any(ended)
        self.world.now += 1

    def ends_consistently(self, epoch: int, quorum: str) -> None:
        """Read by a round at a quorum."""
        self.prepare(3, "q", 1300, epoch, quorum)
        self.accept(3, quorum)
        assert self.world.observations[-1].operation.startswith("q")


def lost_promise(schedule: Schedule) -> None:
    """A round that was prepared on the old side is continued after a later, lower round."""
    schedule.prepare(1, "w", 1000, 1, "AB")
    schedule.accept(1, "B")
    schedule.abandon(1)
    schedule.enter(2)
    if not schedule.stream("AC"):
        conclude(schedule)
    schedule.enter(3)
    schedule.enter(4)
    schedule.prepare(2, "w", 900, 4, "CD")
    schedule.accept(2, "CD")
    schedule.ends_consistently(4, "BD")


def prepared_on_one_side(schedule: Schedule) -> None:
    """A round of the change is prepared on the old side alone."""
    schedule.enter(2)
    assert schedule.stream("AC")
    schedule.prepare(1, "w", 1000, 2, "ABD")
    schedule.accept(1, "B")
    schedule.abandon(1)
    schedule.enter(3)
    schedule.enter(4)
    schedule.prepare(2, "w", 900, 4, "CD")
    schedule.accept(2, "CD")
    schedule.ends_consistently(4, "BD")


def base_of_readers(schedule: Schedule) -> None:
    """A step that a new replica has taken is missed, because that replica is not read yet."""
    schedule.enter(2)
    assert schedule.stream("AC")
    schedule.prepare(1, "w", 1000, 2, "BC")
    schedule.accept(1, "CD")
    schedule.abandon(1)
    schedule.prepare(2, "w", 1100, 2, "ABD")
    schedule.accept(2, "AB")
    schedule.abandon(2)
    schedule.enter(3)
    schedule.read(3, "CD")
    schedule.ends_consistently(3, "ABC")


def streamed_below_promise(schedule: Schedule) -> None:
    """A new replica promises a round, and takes an earlier one by streaming."""
    schedule.enter(2)
    schedule.prepare(1, "w", 1000, 2, "BC")
    schedule.accept(1, "C")
    schedule.abandon(1)
    schedule.prepare(2, "w", 1100, 2, "ABD")
    has_ended = schedule.stream("AC")
    schedule.accept(2, "AB")
    schedule.abandon(2)
    if not has_ended:
        conclude(schedule)
    schedule.enter(3)
    schedule.read(3, "CD")
    schedule.ends_consistently(3, "ABC")


def streamed_with_open_promise(schedule: Schedule) -> None:
    """A new replica takes a record of one source, and a later promise of the other."""
    schedule.prepare(1, "w", 1000, 1, "AC")
    schedule.accept(1, "C")
    schedule.abandon(1)
    schedule.prepare(2, "w", 1100, 1, "AB")
    schedule.accept(2, "B")
    schedule.abandon(2)
    schedule.enter(2)
    if not schedule.stream("CA"):
        conclude(schedule)
    schedule.enter(3)
    schedule.enter(4)
    schedule.read(4, "CD")
    schedule.ends_consistently(4, "BC")


def prepared_in_two_epochs(schedule: Schedule) -> None:
    """A round gets one promise before a change, and the other after it."""
    schedule.prepare(1, "w", 1000, 1, "A")
    late = schedule.world.messages[-1]
    schedule.enter(2, "BCD")
    assert schedule.stream("BC")
    schedule.enter(3, "BCD")
    schedule.enter(4, "BCD")
    schedule.prepare(2, "w", 900, 4, "BD")
    schedule.accept(2, "BD")
    schedule.world.deliver(late, "C")
    schedule.accept(1, "AC")
    schedule.ends_consistently(4, "BC")


def accepted_below_horizon(schedule: Schedule) -> None:
    """An accept arrives after the tombstone that came later has been collected."""
    world = schedule.world
    schedule.prepare(1, "w", 1000, 1, "BC")
    schedule.accept(1, "")
    late = world.messages[-1]
    for kind in "wd":
        schedule.prepare(2, kind, 1100, 1, "ABC")
        schedule.accept(2, "ABC")
    world.agree(stamp_at(6000))
    for step in (world.promise_floor, world.set_horizon):
        for name in "ABC":
            step(name)
    for name in "ABC":
        world.replicas[name].collect()
        assert world.replicas[name].record is None
    for name in "BC":
        world.deliver(late, name)
    world.advance(1)
    schedule.prepare(3, "q", 7000, 1, "AB")
    schedule.accept(3, "AB")
    assert world.observations[-1].operation.startswith("q")


def prepared_below_horizon(schedule: Schedule) -> None:
    """A round is below a tombstone that two replicas had collected before floors were lowered."""
    world = schedule.world
    for kind in "wd":
        schedule.prepare(2, kind, 1100, 1, "ABC")
        schedule.accept(2, "ABC")
    world.agree(stamp_at(6000))
    for step in (world.promise_floor, world.set_horizon):
        for name in "ABC":
            step(name)
    for name in "AB":
        world.replicas[name].collect()
    world.begin_lowering(stamp_at(500))
    for name in "ABC":
        world.lower(name)
    schedule.prepare(1, "w", 600, 1, "AB")
    schedule.accept(1, "AB")
    schedule.abandon(1)
    schedule.prepare(3, "q", 7000, 1, "BC")
    schedule.accept(3, "BC")
    assert world.observations[-1].operation.startswith("q")


def agreed_on_one_side(schedule: Schedule) -> None:
    """A step that only the old side has taken is read before the switch, and not after it."""
    schedule.enter(2)
    assert schedule.stream("AC")
    schedule.prepare(1, "w", 1000, 2, "ABD")
    schedule.accept(1, "AB")
    schedule.abandon(1)
    reader = Reader(2, schedule.world.now)
    for name in "AB":
        schedule.world.read(reader, name)
    schedule.world.now += 1
    schedule.enter(3)
    schedule.enter(4)
    schedule.ends_consistently(4, "CD")


def conclude(schedule: Schedule) -> None:
    """Conclude the key, as T3 demands, after which streaming ends."""
    schedule.prepare(3, "q", 1200, 2, "ABCD")
    schedule.accept(3, "ABCD")
    schedule.abandon(3)
    assert schedule.stream("AC")


SCHEDULES = [
    (lost_promise, "streams_no_promises"),
    (prepared_on_one_side, "prepares_readers_only"),
    (base_of_readers, "base_of_readers"),
    (streamed_below_promise, "streams_past_promises"),
    (streamed_with_open_promise, "ends_streaming_early"),
    (agreed_on_one_side, "agrees_on_old_side"),
    (prepared_in_two_epochs, "votes_across_epochs"),
    (accepted_below_horizon, "votes_below_floor"),
    (prepared_below_horizon, "lowers_rounds_too"),
]


@pytest.mark.parametrize(("schedule", "rule"), SCHEDULES)
def test_schedule_ends_in_violation_without_its_rule(
    schedule: Callable[[Schedule], None], rule: str
) -> None:
    with pytest.raises(Violation):
        schedule(Schedule(rule))


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in SCHEDULES])
def test_schedule_is_harmless_with_all_rules(schedule: Callable[[Schedule], None]) -> None:
    schedule(Schedule(""))
