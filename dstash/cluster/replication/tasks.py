"""Background work as generators without I/O: a task yields the effects that it needs.

A task yields an effect and is resumed with its result, or with an exception at that place::

    reply = yield Ask("peer2", DigestsRequest(partitions))
    yield Merge(entries)
    yield Pause(50)

The scheduler turns effects into messages and writes. It does no I/O and has no clock, so the same
tasks run in the simulation. Between two effects a task works for a few hundred microseconds at
most, so that requests do not wait for it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dstash.errors import DStashError, TimedOut, Unavailable, VersionMismatch
from dstash.version import Version
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Error, Welcome
from dstash.wire.protocol import LOWEST_PROTOCOL, common_protocol
from dstash.wire.shapes import Message

#: How long another peer may take to answer.
ANSWER_TIMEOUT_MS: Final = 5000


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to a peer; resumes with the reply, or raises the error that it returned."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Notify:
    """Send a message that has no reply."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge, drop, mark and replace records, and take promises, durably: see ``Write``.

    ``is_acked``: a quorum may have accepted each record, so no clock refuses it.
    """

    entries: Sequence[tuple[bytes, bytes]] = ()
    drops: Sequence[tuple[bytes, bytes]] = ()
    marks: Sequence[tuple[bytes, bytes]] = ()
    replacements: Sequence[tuple[bytes, bytes | None]] = ()
    replaces: frozenset[Version] = frozenset()
    resting: Sequence[int] = ()
    earlier: Sequence[tuple[bytes, int]] = ()
    is_acked: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """Wait until every write that was accepted before is on disk."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; 0 only yields to other tasks."""

    milliseconds: int = 0


Effect = Ask | Notify | Merge | Settle | Pause

#: A task; its return value is its result.
Task = Generator[Effect, Any, Any]

#: Called when a task ends: with its result, or with the error that ended it.
Ended = Callable[[Any, DStashError | None], None]


class Outgoing(NamedTuple):
    """Frames for another peer."""

    peer: str
    frames: list[bytes]
    correlation: int


class _Job:
    """A running task."""

    def __init__(self, name: str, task: Task, ended: Ended | None) -> None:
        self.name = name
        self.task = task
        self.ended = ended


class Scheduler:
    """Runs tasks.

    Args:
        commit: queues a ``Merge`` as a write, and calls the callback with its result.
        settle: calls the callback when all writes that were accepted before are on disk.
        epoch: returns the epoch that requests carry.
    """

    def __init__(
        self,
        commit: Callable[[Merge, Callable[[DStashError | None], None]], None],
        settle: Callable[[Callable[[], None]], None],
        epoch: Callable[[], int],
    ) -> None:
        self._commit = commit
        self._settle = settle
        self._epoch = epoch
        self._ready: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._asked: dict[int, tuple[_Job, str, int]] = {}
        self._paused: list[tuple[int, _Job]] = []
        self._jobs: set[_Job] = set()
        self._correlations = itertools.count(1)
        self._out: list[Outgoing] = []
        #: By peer, the protocol version that it has in common with this one.
        self._protocols: dict[str, int] = {}
        #: Whether there is time for another step; called between the steps of a tick.
        self.has_time: Callable[[], bool] = lambda: True

    def spawn(self, name: str, task: Task, ended: Ended | None = None) -> None:
        """Start a task; ``name`` is for logs, ``running`` and ``cancel``."""
        job = _Job(name, task, ended)
        self._jobs.add(job)
        self._ready.append((job, None, None))

    def running(self, name: str) -> bool:
        """Whether a task with this name is running."""
        return any(job.name == name for job in self._jobs)

    def cancel(self, prefix: str) -> None:
        """Close the tasks whose names begin with ``prefix``, wherever they are."""
        gone = {job for job in self._jobs if job.name.startswith(prefix)}
        self._jobs -= gone
        self._ready = deque(entry for entry in self._ready if entry[0] not in gone)
        self._paused = [entry for entry in self._paused if entry[1] not in gone]
        self._asked = {
            correlation: entry for correlation, entry in self._asked.items() if entry[0] not in gone
        }
        for job in gone:
            job.task.close()

    @property
    def outstanding(self) -> frozenset[int]:
        """The correlation ids of requests without a reply yet."""
        return frozenset(self._asked)

    @property
    def has_ready(self) -> bool:
        """Whether a task can continue now."""
        return bool(self._ready)

    def wakeup(self) -> int | None:
        """Return the latest time at which ``tick`` is due (milliseconds since 1970)."""
        moments = [when for when, _ in self._paused]
        moments += [expires for _, _, expires in self._asked.values()]
        return min(moments, default=None)

    def tick(self, now: int, steps: int = 8) -> list[Outgoing]:
        """Run up to ``steps`` steps of tasks while there is time; returns the messages to send."""
        self._wake(now)
        for _ in range(min(steps, len(self._ready))):
            job, value, error = self._ready.popleft()
            if job in self._jobs:  # else cancelled while a result arrived
                self._step(job, value, error, now)
                if not self.has_time():
                    break
        out, self._out = self._out, []
        return out

    def answered(self, peer: str, envelope: Envelope) -> None:
        """Handle a reply of another peer."""
        message = envelope.message
        error = message.error() if isinstance(message, Error) else None
        if isinstance(message, Welcome):
            self._learn_protocol(peer, message.lowest, message.highest)
        elif isinstance(error, VersionMismatch):
            self._learn_protocol(peer, error.details.get("lowest"), error.details.get("highest"))
        asked = self._asked.pop(envelope.correlation, None)
        if asked is not None:
            self._ready.append((asked[0], None if error else message, error))

    def _learn_protocol(self, peer: str, lowest: object, highest: object) -> None:
        self._protocols[peer] = common_protocol(lowest, highest) or LOWEST_PROTOCOL

    def lost(self, peer: str) -> None:
        """Fail all requests to a peer whose connection broke."""
        self._protocols.pop(peer, None)
        for correlation in [key for key, asked in self._asked.items() if asked[1] == peer]:
            self.unsent(peer, correlation)

    def unsent(self, peer: str, correlation: int) -> None:
        """Fail a request that could not be sent, or that cannot get a reply any more."""
        asked = self._asked.pop(correlation, None)
        if asked is not None:
            self._ready.append((asked[0], None, Unavailable(f"{peer} is not connected")))

    def _wake(self, now: int) -> None:
        due = [job for when, job in self._paused if when <= now]
        self._paused = [entry for entry in self._paused if entry[0] > now]
        self._ready.extend((job, None, None) for job in due)
        late = [key for key, (_, _, expires) in self._asked.items() if expires <= now]
        for correlation in late:
            job, peer, _ = self._asked.pop(correlation)
            self._ready.append((job, None, TimedOut(f"{peer} did not answer in time")))

    def _step(self, job: _Job, value: Any, error: BaseException | None, now: int) -> None:
        try:
            effect = job.task.send(value) if error is None else job.task.throw(error)
        except StopIteration as stop:
            self._end(job, stop.value, None)
        except DStashError as failure:
            self._end(job, None, failure)
        else:
            self._apply(job, effect, now)

    def _end(self, job: _Job, result: Any, failure: DStashError | None) -> None:
        self._jobs.discard(job)
        if job.ended is not None:
            job.ended(result, failure)

    def _apply(self, job: _Job, effect: Effect, now: int) -> None:
        match effect:
            case Ask(peer, message):
                correlation = self._send(peer, message, now)
                self._asked[correlation] = (job, peer, now + ANSWER_TIMEOUT_MS)
            case Notify(peer, message):
                self._send(peer, message, now)
                self._ready.append((job, None, None))
            case Merge():
                self._commit(effect, lambda error: self._ready.append((job, None, error)))
            case Settle():
                self._settle(lambda: self._ready.append((job, None, None)))
            case Pause(milliseconds):
                if milliseconds <= 0:
                    self._ready.append((job, None, None))
                else:
                    self._paused.append((now + milliseconds, job))

    def _send(self, peer: str, message: Message, now: int) -> int:
        correlation = next(self._correlations)
        # No deadline (0): the clocks of two peers may differ, and maintenance is idempotent.
        protocol = self._protocols.get(peer, LOWEST_PROTOCOL)
        envelope = Envelope(correlation, self._epoch(), 0, message, protocol)
        self._out.append(Outgoing(peer, encode(envelope), correlation))
        return correlation
