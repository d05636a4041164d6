"""Gains: streams the partitions that a topology change gives a peer, or that its disk has lost.

Each new view may begin it, stop it, or let it continue. When all of it has ended, the peer proposes
the topology step that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import structlog

from dstash import events
from dstash.cluster.replication.replica import Progress, Replica
from dstash.cluster.replication.streaming import stream
from dstash.cluster.replication.tasks import Scheduler, Task
from dstash.cluster.replication.throttle import STREAMS
from dstash.cluster.topology import transitions
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.transitions import Proposal
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.limits import PARTITIONS

_log = structlog.get_logger("dstash.peer")

#: The purpose of streaming the registers of a topology change, after all other records.
_REGISTERS: Final = "registers"

#: What partitions are streamed for. Streaming continues while it stays the same.
_Purpose = tuple[Any, ...]


class _Wanted(NamedTuple):
    """Partitions that the view asks a peer to stream, and the topology step at the end."""

    purpose: _Purpose
    partitions: Sequence[int]
    step: Proposal


class Gains:
    """Streams the partitions that one peer gains.

    Args:
        replica: this peer.
        scheduler: runs the tasks that stream.
        complete: makes the task that follows the last streamed partition.
        propose: takes a topology step.
    """

    def __init__(
        self,
        replica: Replica,
        scheduler: Scheduler,
        complete: Callable[[], Task],
        propose: Callable[[Proposal], None],
    ) -> None:
        self._replica = replica
        self._scheduler = scheduler
        self._complete = complete
        self._propose = propose
        self._streaming: _Purpose | None = None
        #: What was streamed when the topology change was paused.
        self._paused: _Purpose | None = None
        self._unstreamed: set[int] = set()
        #: The topology step of the streaming that has ended, until the topology has it.
        self._final_step: Proposal | None = None

    def install(self, view: View) -> None:
        """Begin, stop or keep streaming, as the topology of a new view demands."""
        wanted = self._wanted(view)
        purpose = None if wanted is None else wanted.purpose
        if purpose == self._streaming and purpose is not None:
            if self._final_step is not None:
                # The topology may have been lost with the step, and restored without it.
                self._propose(self._final_step)
            return
        self._final_step = None
        self._scheduler.cancel("stream:")
        if self._streaming is not None and self._unstreamed:
            self._log(events.STREAMING_STOPPED)
        change = view.topology.change
        if wanted is not None:
            self._begin(wanted)
        elif change is not None and change.paused:
            self._pause()
        else:
            self._unstreamed, self._paused = set(), None
        self._streaming = purpose

    def describe(self) -> dict[str, Any]:
        """Return how far the streaming is, for the status."""
        progress, now, left = self._replica.progress, self._replica.now(), len(self._unstreamed)
        return {
            "streaming": left,
            "streaming_of": progress.partitions,
            "streaming_ms": progress.milliseconds(now),
            "streaming_bytes_per_second": progress.bytes_per_second(now),
            "streaming_seconds_left": progress.seconds_left(left, now),
            "streamed_records": progress.records,
            "streamed_bytes": progress.bytes,
        }

    # -- inside

    def _wanted(self, view: View) -> _Wanted | None:
        member = view.members.get(self._replica.me)
        if member is None:
            return None
        if not member.synced:
            return self._wanted_by_store(view, member)
        return self._wanted_by_change(view.topology)

    def _wanted_by_store(self, view: View, member: Member) -> _Wanted:
        """A store that is new or was rolled back lacks what this peer held."""
        me, store_id, lineage = member.id, member.store_id, self._replica.local_partitions.lineage
        held = [number for number in range(PARTITIONS) if me in view.readers[number]]
        return _Wanted(
            ("store", store_id, view.readers),
            held,
            lambda latest: transitions.streamed(latest, me, store_id, lineage.current),
        )

    def _wanted_by_change(self, topology: Topology) -> _Wanted | None:
        me, change = self._replica.me, topology.change
        if change is None or change.switched or change.paused:
            return None
        are_registers = me in change.complete
        if are_registers and (not change.resting or me in change.registers_complete):
            return None
        gained = transitions.incoming(topology).get(me)
        if not gained:
            return None
        number = change.number
        lineage = self._replica.local_partitions.lineage

        def complete(latest: Topology) -> Topology | None:
            # A change of another history may have the same number, see ``joining.shares_epoch``.
            if transitions.incoming(latest).get(me) != gained:
                return None
            if are_registers:
                return transitions.complete_registers(latest, me, number)
            return transitions.complete(latest, me, number, lineage.current)

        purpose = (_REGISTERS if are_registers else "change", number, gained)
        return _Wanted(purpose, gained, complete)

    def _begin(self, wanted: _Wanted) -> None:
        purpose, partitions, step = wanted
        if purpose == self._paused:
            # Streamed partitions stay complete: this peer gets every write to them, as a replica.
            self._replica.progress.resume(self._replica.now())
        else:
            self._unstreamed = set(partitions)
            self._replica.progress = Progress(len(partitions), self._replica.now())
        progress = self._replica.progress
        left = [partition for partition in partitions if partition in self._unstreamed]
        streamers = [left[begin::STREAMS] for begin in range(STREAMS)]
        working = sum(map(bool, streamers))
        if left:
            _log.info(events.STREAMING_BEGUN, purpose=purpose[0], partitions=len(left))

        def all_ended() -> None:
            progress.ended = self._replica.now()
            if left:
                self._log(events.STREAMING_ENDED)
            self._scheduler.spawn("stream:end", self._complete(), propose)

        def propose(result: Any, failure: DStashError | None) -> None:
            self._final_step = step
            self._propose(step)

        def ended(result: Any, failure: DStashError | None) -> None:
            nonlocal working
            working -= 1
            if not working and self._streaming == purpose and not self._unstreamed:
                all_ended()

        if not working:
            all_ended()
        for number, share in enumerate(streamers):
            if share:
                done = self._unstreamed.discard
                task = stream(self._replica, share, done, registers=purpose[0] == _REGISTERS)
                self._scheduler.spawn(f"stream:{number}", task, ended)

    def _pause(self) -> None:
        if self._streaming is not None:
            self._paused = self._streaming
            self._replica.progress.pause(self._replica.now())

    def _log(self, event: str) -> None:
        progress, now = self._replica.progress, self._replica.now()
        _log.info(
            event,
            partitions=progress.partitions - len(self._unstreamed),
            of=progress.partitions,
            records=progress.records,
            bytes=progress.bytes,
            seconds=round(progress.milliseconds(now) / 1000, 1),
            bytes_per_second=progress.bytes_per_second(now),
        )
