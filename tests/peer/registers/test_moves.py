"""Registers across topology changes: refused while they move, and safe afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.drop_steps import with_drop
from dstash.cluster.topology.topology import Change, Topology
from dstash.cluster.topology.view import View
from dstash.errors import Busy, ChangeConflict, UsageError
from dstash.store.record import build_record, open_record, partition_of, version_of
from dstash.store.register.ballot import (
    Promise,
    pack_promise,
    round_of,
    unpack_promise,
    writer_of,
)
from dstash.version import pack, stamp_at
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from dstash.wire.registers.consensus import Prepare
from tests.harness.joined import Joined
from tests.harness.registers import Callers, blobs

ONE, TWO, THREE = b"\x01", b"\x02", b"\x03"
KEY = b"k"
PLACE = partition_of(KEY).to_bytes(2, "big") + b"\x02@r" + KEY


class Moving:
    """A cluster of a, b and c, and a peer d that takes the place of a."""

    def __init__(self) -> None:
        self.joined = joined = Joined("abcd", registers=True)
        before = joined.topology.without("d")
        joined.session.install(replace(before, epoch=6).encode(), list("abc"))
        joined.change(replace(before, epoch=6))
        joined.settle()
        self.callers = Callers(joined)

    def begin(self) -> None:
        """Begin the change."""
        arrives = Announcement("d", "tcp://d:1", "store-d", "z-d", 1.0, features=FEATURES)
        self.change(transitions.swap(self.joined.topology, "a", arrives))

    def change(self, topology: Topology) -> None:
        """Give a topology to all peers; those that are down are known to be."""
        joined = self.joined
        joined.topology = topology
        view = View(topology, frozenset(joined.peers) - joined.down)
        for name, core in joined.peers.items():
            joined._answer_each(name, core.install(view, joined.now))

    def copy(self) -> None:
        """Let the change run until d has streamed its data, while registers are served."""
        self._run(lambda change: change is not None and "d" in change.complete)

    def rest(self) -> None:
        """Let the change go to the step in which registers rest, and no further."""
        self.copy()
        resting = transitions.switch(self.joined.topology)
        assert resting is not None
        self.change(resting)
        assert resting.change is not None
        assert resting.change.resting

    def _run(self, is_done: Callable[[Change | None], bool]) -> None:
        joined = self.joined
        for _ in range(3000):
            joined.settle()
            joined.now += 20
            for core in joined.peers.values():
                for step in core.take_proposals():
                    changed = step(joined.topology)
                    if changed is not None:
                        self.change(changed)
            if is_done(joined.topology.change):
                return
            switched = transitions.switch(joined.topology)
            if switched is not None:
                self.change(switched)
        raise AssertionError(f"the change is not done: {joined.topology.change}")

    def end(self) -> None:
        """Let the change run to its end."""
        joined = self.joined
        self._run(lambda change: change is None)
        assert {member.id for member in joined.topology.members} == set("bcd")
        joined.settle()

    def record(self, name: str) -> bytes | None:
        """Return the register that a peer holds."""
        return self.joined.stores[name].records.get(PLACE)


@pytest.fixture
def moving() -> Moving:
    return Moving()


def test_registers_are_served_until_all_data_is_copied(moving: Moving) -> None:
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    moving.begin()
    assert callers.run(callers.change(Kind.INCREMENT, KEY, home="a")).result.value == TWO
    moving.copy()
    assert callers.run(callers.change(Kind.INCREMENT, KEY, home="b")).result.value == THREE
    moving.end()
    assert moving.record("d") == moving.record("b")
    joined.down |= {"c"}
    assert callers.run(callers.settle(KEY, home="d")).result[::2] == (Outcome.FOUND, THREE, None)


def test_member_of_an_earlier_version_lets_registers_rest_at_once(moving: Moving) -> None:
    callers, topology = moving.callers, moving.joined.topology
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    old = FEATURES.replace("registers-last", "").strip()
    members = tuple(replace(member, features=old) for member in topology.members)
    moving.joined.topology = replace(topology, members=members)
    moving.begin()
    assert isinstance(callers.run(callers.settle(KEY, home="b")).error, Busy)
    moving.end()
    assert callers.run(callers.settle(KEY, home="d")).result.value == ONE


def test_registers_are_refused_while_they_rest(moving: Moving) -> None:
    callers = moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    moving.begin()
    moving.rest()
    for home in "abc":
        error = callers.run(callers.settle(KEY, home=home)).error
        assert isinstance(error, Busy)
        assert "a topology change moves the register" in str(error)
    prepare = Prepare(moving.joined.now + 1, b"abcd", b"", blobs(PLACE))
    assert isinstance(callers.run(callers.send("b", prepare)).error, Busy)
    moving.end()
    assert callers.run(callers.settle(KEY, home="d")).result[::2] == (Outcome.FOUND, ONE, None)
    increment = callers.change(Kind.INCREMENT, KEY, home="d")
    assert callers.run(increment).result.value == TWO


def test_operation_that_waits_is_refused_when_its_register_rests(moving: Moving) -> None:
    joined, callers = moving.joined, moving.callers
    moving.begin()
    moving.copy()
    joined.mute |= {"b", "c"}
    never_sent = callers.change(Kind.PUT, KEY, values=[ONE])
    joined.settle()
    moving.rest()
    joined.mute.clear()
    assert callers.run(never_sent).result.error[0] == Busy.code


@pytest.mark.parametrize("phase", ["before", "copied"])
def test_round_of_a_replica_that_left_cannot_be_undercut(moving: Moving, phase: str) -> None:
    """The fork of rule R6: a round prepared by a and b, and accepted by b alone.

    After a was replaced by d, c and d hold an older record. They are a majority, so without the
    promise of a they would agree on it, and a later round would find the record of b.
    """
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    joined.settle()
    if phase == "copied":  # d has taken promises already
        moving.begin()
        moving.copy()
    joined.down.add("c")
    callers.run(callers.change(Kind.PUT, KEY, values=[TWO]))
    newest = joined.stores["b"].records[PLACE]
    assert moving.record("a") == newest
    # a loses its copy of the accept, as if the accept had reached b alone.
    joined.stores["a"].records[PLACE] = moving.record("c") or b""
    number = round_of(version_of(newest))
    given = Promise(number, writer_of(version_of(newest)))
    joined.stores["a"].promises[PLACE] = pack_promise(PLACE, given)
    joined.down.clear()
    joined.down.add("b")
    for core in joined.peers.values():
        core.hints.forget("c")
    if phase == "before":
        moving.begin()
    moving.end()
    assert version_of(moving.record("d") or b"") < version_of(newest)
    streamed = unpack_promise(PLACE, joined.stores["d"].promises[PLACE], 0)
    assert (streamed.round, streamed.earlier) == (number, number)
    first = callers.run(callers.settle(KEY, home="c")).result
    joined.down.clear()
    joined.settle()
    for home in "dbc":
        assert callers.run(callers.settle(KEY, home=home)).result[:3] == first[:3]
    settled = moving.record("d")
    assert settled is not None
    assert round_of(version_of(settled)) > round_of(version_of(newest))


def test_register_without_open_promises_is_not_written_again(moving: Moving) -> None:
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    joined.settle()
    before = moving.record("b")
    moving.begin()
    moving.end()
    for home in "dbc":
        assert callers.run(callers.settle(KEY, home=home)).result.value == ONE
    assert moving.record("d") == before


def test_register_that_is_ahead_of_the_clocks_is_streamed(moving: Moving) -> None:
    """Its round was promised by a and b while their clocks were ahead, and b alone accepted it."""
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    callers.run(callers.change(Kind.INCREMENT, KEY))
    joined.settle()
    latest = open_record(moving.record("b") or b"")
    number, writer = joined.now + 3_600_000, b"dead"
    ahead = latest._replace(version=pack(stamp_at(number), writer))
    joined.stores["a"].promises[PLACE] = pack_promise(PLACE, Promise(number, writer))
    joined.stores["b"].records[PLACE] = build_record(b"@r", KEY, ahead)
    joined.down.add("c")
    moving.begin()
    moving.end()
    assert version_of(moving.record("d") or b"") == ahead.version
    joined.down.clear()
    assert callers.run(callers.settle(KEY, home="d")).result.value == TWO
    assert callers.run(callers.change(Kind.INCREMENT, KEY, home="b")).result.value == THREE
    for _ in range(300):
        joined.now += 50
        joined.settle()
    assert len({moving.record(name) for name in "bcd"}) == 1, "merges take it"
    assert version_of(moving.record("c") or b"") > ahead.version
    joined.down.add("b")
    assert callers.run(callers.settle(KEY, home="c")).result.value == THREE


def test_promise_that_forbids_a_merge_is_concluded(moving: Moving) -> None:
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    joined.down.add("c")
    callers.run(callers.change(Kind.PUT, KEY, values=[TWO]))
    joined.down.clear()
    prepare = Prepare(joined.now + 100, b"dead", b"", blobs(PLACE))
    callers.run(callers.send("c", prepare))
    joined.settle()
    for _ in range(300):
        joined.now += 50
        joined.settle()
        if not joined.stores["c"].promises:
            break
    assert joined.stores["c"].promises == {}, "hints alone cannot reach it"
    assert len({moving.record(name) for name in "abc"}) == 1
    assert callers.run(callers.settle(KEY, home="c")).result.value == TWO


def test_corrupt_register_is_concluded(moving: Moving) -> None:
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    joined.settle()
    joined.stores["b"].records[PLACE] = (moving.record("b") or b"")[:-1] + b"?"
    assert callers.run(callers.settle(KEY, home="b")).result.value == ONE
    for _ in range(100):
        joined.now += 50
        joined.settle()
    assert len({moving.record(name) for name in "abc"}) == 1


def test_corrupt_register_of_two_replicas_is_concluded() -> None:
    """The other replica alone holds all that both agree on."""
    joined = Joined("ab", replicas=2, registers=True)
    callers = Callers(joined)
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    stores = joined.stores
    stores["a"].records[PLACE] = stores["a"].records[PLACE][:-1] + b"?"
    assert callers.run(callers.settle(KEY)).result.value == ONE
    assert callers.run(callers.change(Kind.INCREMENT, KEY, home="b")).result.value == TWO
    joined.settle()
    assert stores["a"].records == stores["b"].records


def test_corrupt_register_that_moves_is_repaired(moving: Moving) -> None:
    """The change waits for it: what is corrupt cannot be streamed, and no round can replace it."""
    joined, callers = moving.joined, moving.callers
    callers.run(callers.change(Kind.PUT, KEY, values=[ONE]))
    joined.settle()
    whole = moving.record("b") or b""
    moving.begin()
    moving.rest()
    joined.stores["b"].records[PLACE] = whole[:-1] + b"?"
    joined.peers["b"].local_partitions.corruption.report([PLACE])
    moving.end()
    assert moving.record("b") == whole


def test_drops_are_refused(moving: Moving) -> None:
    topology: Topology = moving.joined.topology
    with pytest.raises(UsageError, match="index '@r' has registers, so it cannot be dropped"):
        with_drop(topology, "@r", b"", 1)


def test_earlier_version_may_not_join(moving: Moving) -> None:
    old = Announcement("e", "tcp://e:1", "store-e", "z-e", 1.0, features="drop")
    with pytest.raises(ChangeConflict, match="'e' runs an earlier version"):
        transitions.add(moving.joined.topology, [old])
