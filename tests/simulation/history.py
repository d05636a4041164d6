"""The history of client calls and their results, which the checker reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dstash.client.operations.batching import Item
from dstash.client.operations.writes import WriteChunk, WriteOperation
from dstash.client.results import BatchResult
from dstash.errors import DStashError, TimedOut
from dstash.store.record import open_record
from dstash.types import NEVER, Level, Outcome
from dstash.version import Version
from dstash.wire.keys import Key
from dstash.wire.messages import Put
from dstash.wire.shapes import Frame, Message
from tests.simulation.trace import show_version

#: A place in the data: index and key.
Place = tuple[str, str]

#: The end of a call that never returned.
NEVER_RETURNED: Final = 1 << 62

#: Kinds of writes that send records with their existing version.
_WHOLE_RECORDS: Final = ("touch", "restore")


@dataclass(slots=True)
class Write:
    """One key of one call that writes.

    ``versions`` are all versions under which it was sent; ``acked`` is the acked version.
    ``value`` is None for a delete and for a drop, which is a write to each key that it covers. A
    touch carries the value of the record it saw. A write that is
    stamped again after clocks were set may get another expiry: ``first_expiry`` is the lowest that
    was sent, ``last_expiry`` the highest, ``expiry`` the last, which may not have been sent.
    """

    kind: str
    client: str
    place: Place
    level: Level
    invoked: int
    value: Any = None
    expiry: int = NEVER
    first_expiry: int = NEVER
    last_expiry: int = NEVER
    returned: int = NEVER_RETURNED
    outcome: Outcome = Outcome.UNKNOWN
    acked: Version | None = None
    error: str = ""
    #: The error of the call when it is made for this key alone.
    raised: DStashError | None = None
    #: The result of a delete of this key alone: whether the key existed.
    found: bool | None = None
    versions: list[Version] = field(default_factory=list)

    @property
    def removes(self) -> bool:
        """Whether nothing is left after this write."""
        return self.kind in ("delete", "drop")


@dataclass(slots=True)
class Read:
    """One key of one call that reads. ``value`` is None when nothing was found.

    ``version`` is known only if a whole record was read; ``is_blind`` means that only the existence
    of a value was requested.
    """

    client: str
    place: Place
    level: Level
    invoked: int
    returned: int
    value: Any
    version: Version | None = None
    is_blind: bool = False
    is_last: bool = False


class Counted(NamedTuple):
    """A call that counted the keys of an index."""

    client: str
    index: str
    level: Level
    invoked: int
    returned: int
    number: int


class Failure(NamedTuple):
    """A read that raised an error."""

    client: str
    place: Place
    level: Level
    error: DStashError


@dataclass(slots=True)
class History:
    """All calls of one run."""

    writes: dict[Place, list[Write]] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    #: When processes of peers started.
    starts: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    #: Failures that no call may have.
    broken: list[str] = field(default_factory=list)

    def add(self, write: Write) -> Write:
        """Record the start of a write."""
        self.writes.setdefault(write.place, []).append(write)
        return write

    def counts(self) -> dict[str, int]:
        """Return the number of writes by outcome, and the number of answered reads."""
        counts = {"reads": len(self.reads)}
        for writes in self.writes.values():
            for write in writes:
                counts[write.outcome.value] = counts.get(write.outcome.value, 0) + 1
        return counts


def follow(operation: WriteOperation, writes: dict[Key, Write]) -> None:
    """Record the versions under which the items of a write are sent and acked."""
    message, settle = operation.message, operation.settle

    def noting_message(
        version: Version, items: list[Item], keys: Frame, replaces: bytes
    ) -> Message:
        for key, _, content in items:
            write = writes[key]
            sent = open_record(content).version if write.kind in _WHOLE_RECORDS else version
            if sent not in write.versions:
                write.versions.append(sent)
        request = message(version, items, keys, replaces)
        if isinstance(request, Put):
            for key, _, _ in items:
                write = writes[key]
                write.first_expiry = min(request.expiry, write.first_expiry or request.expiry)
                write.last_expiry = max(request.expiry, write.last_expiry)
        return request

    def noting_settle(chunk: WriteChunk, places: Sequence[int]) -> None:
        for place in places:
            write = writes[chunk.items[place][0]]
            write.acked = write.versions[0] if write.kind in _WHOLE_RECORDS else chunk.version
        settle(chunk, places)

    operation.message = noting_message  # type: ignore[assignment]
    operation.settle = noting_settle  # type: ignore[method-assign]


def conclude(
    writes: dict[Key, Write], result: BatchResult | None, error: DStashError | None, now: int
) -> None:
    """Record the result of a write."""
    for key, write in writes.items():
        write.returned = now
        if result is None:
            # The class of an error for the whole call applies to all its keys.
            unknown = isinstance(error, TimedOut)
            write.outcome = Outcome.UNKNOWN if unknown else Outcome.FAILED
            write.error = repr(error)
        else:
            write.outcome = result.outcomes.get(key, Outcome.STORED)
            write.error = repr(result.reasons[:3]) if key in result.outcomes else ""
        if write.outcome is not Outcome.STORED:
            write.acked = None
    if len(writes) == 1:
        [write] = writes.values()
        _conclude_single(write, result, error)


def _conclude_single(write: Write, result: BatchResult | None, error: DStashError | None) -> None:
    """Record the client's result for a call with one key."""
    write.raised = error
    if result is None:
        return
    try:
        result.raise_first()
    except DStashError as raised:
        write.raised = raised
    if write.kind == "delete" and write.raised is None:
        write.found = bool(result.deleted)


def describe_write(write: Write) -> str:
    """Return a readable line about a write."""
    what = "" if write.removes else f" of {write.value!r}"
    return (
        f"the {write.kind}{what} at {write.level} by {write.client} "
        f"({write.invoked / 1e6:.6f}..{min(write.returned, 10**12) / 1e6:.6f}, {write.outcome})"
    )


def describe_writes(history: History, place: Place) -> list[str]:
    """Return readable lines about the writes of a key."""
    return [
        f"{write.invoked / 1e6:11.6f}..{min(write.returned, 10**12) / 1e6:.6f} {write.client} "
        f"{write.kind} {write.value!r} at {write.level}: {write.outcome}"
        f"{'' if write.outcome is Outcome.STORED else ' ' + write.error}"
        f" sent as {[show_version(version) for version in write.versions]}"
        f"{f' until {write.expiry % 100_000_000}' if write.expiry else ''}"
        for write in history.writes.get(place, [])
    ]
