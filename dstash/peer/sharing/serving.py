"""Keeps the serving mark: whether, and what, clients on this machine may read next to this peer.

They get the answers of a look-up at level ``one``, so the same rules hold: the epoch is that of
this peer, the store has its data and was not rolled back, and the peer is not stopping. As soon as
one of these changes, the heartbeat shows no ticket. It shows another one when the new mark is in
the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.tasks import Merge, Pause, Scheduler, Task
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.peer.admission.checks import Readiness
from dstash.store.sharing.mark import SERVING_MARK, Generation, ServingMark

#: The name of the task that stores the mark.
_TASK: Final = "serving mark"
#: How soon (milliseconds) a mark is stored again that could not be stored.
_RETRY_MS: Final = 1000

_NOTHING: Final = ServingMark(0)


class Outlet(NamedTuple):
    """How a peer shares its store.

    Attributes:
        place: of the store, as clients learn it.
        show: shows a ticket in the heartbeat, and the data file that has its mark.
        new_ticket: returns a random number above 0.
        generation: returns the data file that the store uses now.
    """

    place: list[Any]
    show: Callable[[int, Generation], None]
    new_ticket: Callable[[], int]
    generation: Callable[[], Generation]


class Serving:
    """Keeps the serving mark of one peer. It does nothing unless the peer shares its store.

    Args:
        peer: its id.
        local_partitions: its records.
        scheduler: runs the task that stores the mark.
        readiness: its health.
    """

    def __init__(
        self,
        peer: str,
        local_partitions: LocalPartitions,
        scheduler: Scheduler,
        readiness: Readiness,
    ) -> None:
        self._peer = peer
        self._local_partitions = local_partitions
        self._scheduler = scheduler
        self._readiness = readiness
        self._outlet: Outlet | None = None
        self._view: View | None = None
        #: What the view lets others read; without a ticket.
        self._of_view = _NOTHING
        #: What the store says, or will say as soon as the task has stored it, and in which file.
        self._wanted = _NOTHING, Generation(0, 0)
        #: Whether the heartbeat shows a ticket.
        self._shows = False

    def share(self, outlet: Outlet) -> None:
        """Begin to share the store."""
        self._outlet = outlet

    @property
    def place(self) -> list[Any]:
        """The place of the store, for clients; empty if it is not shared."""
        return self._outlet.place if self._outlet is not None else []

    def install(self, view: View) -> None:
        """Take a new view, before any request is served by it."""
        before, self._view = self._view, view
        if self._outlet is not None and (before is None or before.topology is not view.topology):
            held = self._held_in(view)
            if held != self._of_view:  # else it stays the same object, which compares faster
                self._of_view = held
        self.watch()

    def watch(self) -> None:
        """Take back the ticket if what others may read has changed, and store the new mark."""
        outlet = self._outlet
        if outlet is None:
            return
        mark = self._of_view if self._may_serve() else _NOTHING
        wanted = mark, outlet.generation()
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._hide(outlet)
        if not self._scheduler.running(_TASK):
            self._scheduler.spawn(_TASK, self._store(outlet))

    def _held_in(self, view: View) -> ServingMark:
        topology, member = view.topology, view.members.get(self._peer)
        if not topology.formed or member is None or not member.synced:
            return _NOTHING
        rows = enumerate(view.readers)
        held = frozenset(number for number, row in rows if self._peer in row)
        return ServingMark(0, view.epoch, topology.cluster_id, held)

    def _may_serve(self) -> bool:
        """Whether no check of a request could refuse a read of the current epoch."""
        local_partitions = self._local_partitions
        return (
            not self._readiness.stopping
            and self._readiness.not_ready is None
            and local_partitions.freshness_confirmed
            and not local_partitions.drops.unswept
            and local_partitions.store.check_writable() is None
        )

    def _hide(self, outlet: Outlet) -> None:
        if self._shows:
            self._shows = False
            outlet.show(0, outlet.generation())

    def _store(self, outlet: Outlet) -> Task:
        """Store the mark, until it is the wanted one; then show its ticket."""
        while True:
            mark, generation = wanted = self._wanted
            if mark is not _NOTHING:
                mark = mark._replace(ticket=outlet.new_ticket())
            try:
                yield Merge(marks=[(SERVING_MARK, mark.encode())])
            except DStashError:  # the disk is full: others read by requests meanwhile
                yield Pause(_RETRY_MS)
                continue
            if wanted is self._wanted and generation == outlet.generation():
                self._shows = bool(mark.ticket)
                outlet.show(mark.ticket, generation)
                return
