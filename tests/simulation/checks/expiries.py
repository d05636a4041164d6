"""Checks of settings of indexes: every record has an expiry that a write of it had to get."""

from __future__ import annotations

from collections.abc import Iterator

from dstash.store.record import is_sound, open_record, partition_in
from dstash.types import NEVER, Level
from dstash.version import Version, newest_stamp, stamp_milliseconds
from tests.simulation.checks.convergence import storage_key_of
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import Write, describe_write
from tests.simulation.trace import show_record


@check()
def expiries(run: Run) -> Iterator[Violation]:
    """Check the expiry of every stored record that has a version of the history.

    Peers stamp records from the future again, and these have other versions. Where an older
    topology was put back, two topologies of one epoch may have other settings.
    """
    if run.world.may_share_epochs:
        return
    topology = run.world.membership.topology
    members = {member.id for member in topology.members} if topology is not None else set()
    for place, writes in run.history.writes.items():
        storage_key = storage_key_of(place)
        for node in run.world.nodes:
            record = node.store.records.get(storage_key)
            if node.name not in members or record is None or not is_sound(storage_key, record):
                continue
            found = open_record(record)
            allowed = set().union(*(write.allowed(found.version) for write in writes))
            if allowed and not found.is_tombstone and found.expiry not in allowed:
                text = f"{node.name} has {show_record(record)} in {partition_in(storage_key)}"
                yield Violation("I3", place, f"{text}; allowed are {sorted(allowed)}")


@check()
def longest(run: Run) -> Iterator[Violation]:
    """Check that a put or touch which began after a request has at most its ``max_ttl``.

    At level one, a replica that does not know the settings yet may ack it.
    """
    if run.world.may_share_epochs:
        return
    for place, writes in run.history.writes.items():
        for write in writes:
            if write.kind not in ("put", "touch") or write.level is Level.ONE:
                continue
            longest = _longest(write)
            if write.acked is None or longest == NEVER:
                continue
            limit = stamp_milliseconds(newest_stamp(write.acked)) + longest
            if any(not 0 < expiry <= limit for expiry in _sent_with(write, write.acked)):
                yield Violation("I3", place, f"{describe_write(write)} is longer than {longest} ms")


def _longest(write: Write) -> int:
    """Return the longest time to live (ms) that any settings in force allowed; 0 for no limit."""
    in_force = 0
    for number, request in enumerate(write.settings):
        if request.returned <= write.invoked:
            in_force = number + 1
    requests = [
        request for request in write.settings[in_force - 1 :] if request.began <= write.returned
    ]
    limits = [request.settings.max_ttl for request in requests] if in_force else [0]
    return 0 if 0 in limits else max(limits, default=0)


def _sent_with(write: Write, version: Version) -> set[int]:
    return {expiry for sent, expiry in write.expiries if sent == version}
