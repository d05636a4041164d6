"""The history of client calls and their results, which the checker reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstash.client.operations.batching import Item
from dstash.client.operations.short.write import ShortPut, ShortWrite
from dstash.client.operations.writes import WriteChunk, WriteOperation
from dstash.client.results import BatchResult
from dstash.client.session import Send
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.errors import DStashError, TimedOut
from dstash.peer.admission.writes import Internal
from dstash.peer.commits.commit import Commit
from dstash.peer.core import AnyCommit
from dstash.store.record import Record, open_record, version_of
from dstash.types import NEVER, Level, Outcome
from dstash.version import Version
from dstash.wire.keys import Key
from dstash.wire.messages import Put
from dstash.wire.shapes import Frame, Message
from tests.harness.linearizability import Call as RegisterCall
from tests.simulation.events import SECOND
from tests.simulation.trace import show_version

if TYPE_CHECKING:
    from tests.simulation.registers import Step

#: A place in the data: index and key.
Place = tuple[str, str]

#: The end of a call that never returned.
NEVER_RETURNED: Final = 1 << 62

#: A peer looks at its clock more often than this (microseconds).
_SAME_SPAN: Final = SECOND
#: Presents that differ by no more (milliseconds) are the same, read through the network.
_SAME_MS: Final = 50

#: Kinds of writes that send records with their existing version.
_WHOLE_RECORDS: Final = ("touch", "restore")


@dataclass(slots=True)
class Write:
    """One key of one call that writes.

    ``versions`` are all versions under which it was sent; ``acked`` is the acked version.
    ``value`` is None for a delete and for a drop, which is a write to each key that it covers. A
    touch carries the value of the record it saw. ``expiries`` are those that peers had to give it,
    as its client knew the settings of the index when it was sent: several if it was stamped or sent
    again after clocks or settings were changed. ``settings`` are all that were ever requested for
    the index; the list grows while the run lasts.
    """

    kind: str
    client: str
    place: Place
    level: Level
    invoked: int
    value: Any = None
    returned: int = NEVER_RETURNED
    outcome: Outcome = Outcome.UNKNOWN
    acked: Version | None = None
    error: str = ""
    #: The error of the call when it is made for this key alone.
    raised: DStashError | None = None
    #: The result of a delete of this key alone: whether the key existed.
    found: bool | None = None
    versions: list[Version] = field(default_factory=list)
    expiries: set[tuple[Version, int]] = field(default_factory=set)
    #: Versions of puts, with the expiry that the message had before settings were applied.
    requested: set[tuple[Version, int]] = field(default_factory=set)
    settings: list[SettingsRequest] = field(default_factory=list)

    def allowed(self, version: Version | None = None) -> set[int]:
        """Return the expiries that stored records of this write, or of a version, may have.

        If a client repairs a replica by a record that was sent under earlier settings, the peer
        cuts it.
        """
        found = set()
        for sent, expiry in self.expiries:
            if version is None or sent == version:
                record = Record(sent, 0, expiry, b"")
                found |= {
                    expiry,
                    *(request.settings.record(record).expiry for request in self.settings),
                }
        return found

    def allowed_by_any(self) -> set[int]:
        """Return the expiries of its records under any settings that the index ever had.

        Two topologies of one epoch may have other settings, and each replica applies its own.
        """
        settings = [IndexSettings(self.place[0]), *(request.settings for request in self.settings)]
        return self.allowed() | {
            each.expiry(version, expiry) for each in settings for version, expiry in self.requested
        }

    @property
    def expiry(self) -> int:
        """The latest time at which the value is live, milliseconds since 1970; 0 for no end."""
        return latest_of(self.allowed())

    @property
    def removes(self) -> bool:
        """Whether nothing is left after this write."""
        return self.kind in ("delete", "drop")


def latest_of(expiries: set[int]) -> int:
    """Return the latest of some expiries; 0 for no end."""
    return NEVER if NEVER in expiries else max(expiries, default=NEVER)


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


@dataclass(slots=True)
class SettingsRequest:
    """Settings of an index that an operator requested, and when (microseconds)."""

    settings: IndexSettings
    began: int
    returned: int = NEVER_RETURNED


class Counted(NamedTuple):
    """A call that counted the keys of an index."""

    client: str
    index: str
    level: Level
    invoked: int
    returned: int
    number: int


class Present(NamedTuple):
    """A span (microseconds) in which a peer took about the same time for the present."""

    begin: int
    end: int
    #: How far that was ahead of true time (milliseconds): the lowest in the span.
    ahead_ms: int


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
    #: By index, the settings that were ordered, in order.
    requests: dict[str, list[SettingsRequest]] = field(default_factory=dict)
    #: By key, the calls on registers, and the changes that were applied.
    registers: dict[str, list[RegisterCall]] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=dict)
    #: By peer, what it took for the present.
    presents: dict[str, list[Present]] = field(default_factory=dict)
    #: The versions that peers gave to records from the future.
    restamped: set[Version] = field(default_factory=set)
    #: How many calls on registers have not ended.
    open_registers: int = 0
    #: Failures that no call may have.
    broken: list[str] = field(default_factory=list)

    def add(self, write: Write) -> Write:
        """Record the start of a write."""
        self.writes.setdefault(write.place, []).append(write)
        write.settings = self.requests.setdefault(write.place[0], [])
        return write

    def note_present(self, peer: str, now: int, ahead_ms: int) -> None:
        """Record how far what a peer takes for the present is ahead of true time.

        It is behind where the peer knows the clocks of too few others, or of wrong ones.
        """
        spans = self.presents.setdefault(peer, [])
        last = spans[-1] if spans else None
        if last is not None and now - last.end <= _SAME_SPAN:
            if abs(ahead_ms - last.ahead_ms) <= _SAME_MS:
                spans[-1] = last._replace(end=now, ahead_ms=min(last.ahead_ms, ahead_ms))
                return
            spans[-1] = last._replace(end=now)
        spans.append(Present(now, now, ahead_ms))

    def note_restamped(self, commit: AnyCommit) -> None:
        """Record the versions that a commit gives to records from the future."""
        for waiting in commit.waiting if isinstance(commit, Commit) else ():
            if isinstance(waiting.message, Internal) and waiting.message.merge.replaces:
                entries = waiting.message.merge.entries
                self.restamped.update(version_of(record) for _, record in entries)

    def counts(self) -> dict[str, int]:
        """Return the number of writes by outcome, and the number of answered reads."""
        counts = {"reads": len(self.reads)}
        for writes in self.writes.values():
            for write in writes:
                counts[write.outcome.value] = counts.get(write.outcome.value, 0) + 1
        return counts


def follow(operation: WriteOperation | ShortWrite, writes: dict[Key, Write]) -> None:
    """Record the versions under which the items of a write are sent and acked."""
    if isinstance(operation, ShortWrite):
        _follow_short(operation, writes)
        return
    message, settle = operation.message, operation.settle

    def noting_message(
        version: Version, items: list[Item], keys: Frame, replaces: bytes
    ) -> Message:
        view = operation.session.known_view()
        settings = view.index_settings.get(operation.index) or IndexSettings(operation.index)
        request = message(version, items, keys, replaces)
        for key, _, content in items:
            write, sent = writes[key], version
            if write.kind in _WHOLE_RECORDS:
                record = open_record(content)
                sent = record.version
                limited = settings.record(record, is_touch=write.kind == "touch")
                write.expiries.add((sent, limited.expiry))
            elif isinstance(request, Put):
                write.requested.add((sent, request.expiry))
                write.expiries.add((sent, settings.expiry(sent, request.expiry)))
            if sent not in write.versions:
                write.versions.append(sent)
        return request

    def noting_settle(chunk: WriteChunk, places: Sequence[int]) -> None:
        for place in places:
            write = writes[chunk.items[place][0]]
            is_whole = write.kind in _WHOLE_RECORDS
            content = chunk.items[place][2]
            write.acked = open_record(content).version if is_whole else chunk.version
        settle(chunk, places)

    operation.message = noting_message  # type: ignore[assignment]
    operation.settle = noting_settle  # type: ignore[method-assign]


def _follow_short(call: ShortWrite, writes: dict[Key, Write]) -> None:
    """Record the version under which a short call sends and acks its item.

    The operation that continues the call is followed like any other.
    """
    [write] = writes.values()
    more, end, operation = call.more, call._end, call.operation

    def noting_more(now: int) -> list[Send]:
        was_sent = bool(call.version)
        settings = call.session.known_view().index_settings.get(call.index)
        sends = more(now)
        if call.version and not was_sent:
            write.versions.append(call.version)
            if isinstance(call, ShortPut):
                settings = settings or IndexSettings(call.index)
                write.requested.add((call.version, call.expiry))
                write.expiries.add((call.version, settings.expiry(call.version, call.expiry)))
        return sends

    def noting_end(now: int) -> list[Send]:
        write.acked = call.version
        return end(now)

    def followed_operation() -> WriteOperation:
        general = operation()
        follow(general, writes)
        return general

    call.more = noting_more  # type: ignore[method-assign]
    call._end = noting_end  # type: ignore[method-assign]
    call.operation = followed_operation  # type: ignore[method-assign]


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
