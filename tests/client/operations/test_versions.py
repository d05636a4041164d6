"""The version of the next attempt at a write, when clocks disagree."""

from __future__ import annotations

import pytest

from dstash.client.operations.versions import FIRST_ATTEMPT, Earlier, WriteVersions
from dstash.client.routing import WriteSet
from dstash.client.session import Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import BelowFloor, Busy, ClockSkew, DeadlinePassed
from dstash.limits import MOST_REPLACED
from dstash.types import Level
from dstash.version import VERSION_BYTES, Version, newest_stamp, stamp_at

NOW = 1_700_000_000_000
HOUR = 3_600_000
ABC = ("a", "b", "c")
TARGETS = WriteSet(ABC, ABC, ABC, frozenset(ABC))
FUTURE = stamp_at(NOW + HOUR)


@pytest.fixture
def session() -> Session:
    session = Session(lambda: NOW, random_bytes=bytes)
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in ABC)
    session.install(Topology("c", "id", 1, formed=True, members=members).encode(), [])
    for name in ABC:
        session.learn_clock(name, NOW, NOW, NOW)
    return session


def versions(
    session: Session,
    *,
    version: Version | None = None,
    earlier: Earlier = FIRST_ATTEMPT,
    keeps_all: bool = False,
) -> WriteVersions:
    version = version or session.new_version()
    return WriteVersions(session, TARGETS, Level.QUORUM, version, earlier, keeps_all=keeps_all)


def test_retry_keeps_its_version(session: Session) -> None:
    version = session.new_version()
    assert versions(session, version=version).next([Busy("later")], NOW, is_acked=False) == version


def test_version_that_a_clock_calls_future_is_replaced(session: Session) -> None:
    version = session.new_version()
    first = versions(session, version=version)
    assert first.next([ClockSkew("ahead")], NOW, is_acked=False) is None
    assert first.earlier.refused == version


def test_late_request_is_stamped_again_and_a_delete_keeps_the_version(session: Session) -> None:
    version, late = session.new_version(), [DeadlinePassed("late")]
    put = versions(session, version=version)
    delete = versions(session, version=version, keeps_all=True)
    assert put.next(late, NOW, is_acked=False) is delete.next(late, NOW, is_acked=False) is None
    assert (put.earlier.refused, delete.earlier.refused) == (b"", version)


def test_write_is_stamped_past_a_future_stamp_that_a_quorum_holds(session: Session) -> None:
    first = versions(session)
    first.note_ahead("a", FUTURE)
    first.note_ahead("b", FUTURE + 5)
    second = first.next([ClockSkew("ahead")], NOW, is_acked=False)
    assert second is not None
    assert newest_stamp(second) > FUTURE
    assert first.earlier.passed == FUTURE


def test_write_is_not_stamped_past_what_a_minority_holds(session: Session) -> None:
    version = session.new_version()
    first = versions(session, version=version)
    first.note_ahead("a", FUTURE)
    assert first.next([Busy("later")], NOW, is_acked=False) == version


def test_version_past_a_future_stamp_is_sent_only_twice(session: Session) -> None:
    past = session.version_past(FUTURE)
    second = versions(session, version=past, earlier=Earlier(passed=FUTURE))
    assert second.next([ClockSkew("ahead")], NOW, is_acked=False) == past
    third = versions(session, version=past, earlier=second.earlier)
    assert third.next([ClockSkew("ahead")], NOW, is_acked=False) is None
    assert third.earlier.refused == b""  # it may have replaced a correct record


def test_clock_rises_above_a_floor_unless_it_is_in_the_future(session: Session) -> None:
    first = versions(session)
    floor = stamp_at(NOW + 100)
    assert first.rises_above("a", BelowFloor("old", floor=floor))
    assert newest_stamp(session.new_version()) > floor
    assert not first.rises_above("a", BelowFloor("old", floor=FUTURE))
    assert newest_stamp(session.new_version()) < FUTURE


def test_refused_versions_are_bounded() -> None:
    earlier = FIRST_ATTEMPT
    for number in range(MOST_REPLACED + 3):
        earlier = earlier.with_refused(bytes([number]) * VERSION_BYTES)
    assert len(earlier.refused) == MOST_REPLACED * VERSION_BYTES
    assert earlier.refused[0] == 3
