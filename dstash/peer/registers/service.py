"""Registers in a peer: its votes, and the registers for which it is the home.

It joins the coordinator with the rest of the peer: the view, the clocks, the backlog of its own
commits, and the messages to other peers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.tasks import Outgoing
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.registers import unable, with_registers
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import Busy, DStashError, NotReady, StaleEpoch, UsageError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Request, Ticket
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.registers.coordinator import MOVING, Coordinator, Outbound
from dstash.peer.registers.home import Home
from dstash.peer.registers.proposer import UNKNOWN, Time
from dstash.peer.registers.quorum import voters_of
from dstash.peer.registers.vote_requests import limited
from dstash.store.record import Keyspace, is_sound, partition_in
from dstash.store.register.ballot import is_register_key
from dstash.store.register.header import is_register
from dstash.version import MAX_STAMP, WRITER_BYTES, Stamp
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Error
from dstash.wire.registers import Change, Settle
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.shapes import Message

#: The sender of this peer's requests to itself.
_OWN: Final = b"\0own"

_RETRY_MS: Final = 100

#: How often (milliseconds) registers are concluded, and how many at once.
_CONCLUDE_MS: Final = 1000
_MAX_CONCLUDED: Final = 200

#: How often (milliseconds) the step that raises the feature level is proposed.
_PROPOSE_MS: Final = 1000

_WORDS: Final = 1 << 64

#: Takes a topology step.
Propose = Callable[[Callable[[Topology], Topology | None]], None]


class Registers:
    """The registers of one peer.

    Args:
        peer: its id.
        clock: the cluster clock, as this peer knows it.
        local_partitions: the records, and the memory of the stores of other peers.
        backlog: the writes that wait for the disk.
        hints: what other replicas have missed.
        propose: takes a topology step.
        steady_time: returns milliseconds that never go back.
        preempted: storage keys of registers that could not be merged; it takes them out.
        is_durable: whether no loss of a commit goes unnoticed: else this peer must not vote.
        max_clock_skew_ms: how far clocks may differ.
    """

    def __init__(
        self,
        peer: str,
        clock: ClusterClock,
        local_partitions: LocalPartitions,
        *,
        backlog: Backlog,
        hints: Hints,
        propose: Propose,
        steady_time: Callable[[], int],
        preempted: set[bytes],
        is_durable: bool,
        max_clock_skew_ms: int,
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._local_partitions = local_partitions
        self._backlog = backlog
        self._hints = hints
        self._propose = propose
        self._steady_time = steady_time
        self._preempted = preempted
        self._conclude_after = 0
        self._is_durable = is_durable
        self._max_clock_skew_ms = max_clock_skew_ms
        self._view: View | None = None
        self._propose_after = 0
        life, store_id = local_partitions.lineage.current, local_partitions.store.store_id
        seed = f"{store_id} {life.number} {life.began}".encode()
        writer = xxh3_64_digest(seed)[:WRITER_BYTES]
        self.coordinator = Coordinator(peer, writer, _chances(seed), self._missed, self._held)
        self._home = Home(self.coordinator, clock, self._lost_until, steady_time)

    @property
    def has_work(self) -> bool:
        """Whether requests of clients wait for their answers."""
        return self._home.has_work

    def describe(self) -> dict[str, Any]:
        """Return the operations that wait, and the rounds since the start, for status and metrics.

        ``rounds`` has the number of requests for votes, by phase and outcome.
        """
        counts = self.coordinator.counts
        return {
            "waiting": self._home.waiting,
            "concluded": counts["concluded"],
            "rounds": {key: count for key, count in counts.items() if ":" in key},
        }

    def install(self, view: View) -> None:
        """Take a view."""
        self._view = view
        if view.topology.registers:
            self.coordinator.install(view)

    # -- requests

    def begin(self, request: Request, space: Keyspace, now: int) -> None:
        """Begin a request of a client; ``take`` returns its answer.

        Raises:
            DStashError: it is refused; see ``Home.begin`` and ``_check_ready``.
        """
        message = request.envelope.message
        if isinstance(message, Change | Settle):
            self._check_ready()
            self._home.begin(request.ticket, message, space, request.envelope.moment, now)

    def refuse(self, ticket: Ticket, envelope: Envelope, now: int) -> bool:
        """Take note that a request is refused; see ``Home.refuse`` (D7)."""
        if not isinstance(envelope.message, Change):
            return True
        return self._home.refuse(ticket, envelope.message, envelope.moment, now)

    def begin_vote(self, request: Request) -> None:
        """Begin a request of another peer for votes; the commit answers it.

        Raises:
            Busy: a topology change moves a register, or too much waits for the disk.
            NotReady: this peer must not vote now.
            ProtocolError: the request is malformed.
        """
        envelope = request.envelope
        message = envelope.message
        if not isinstance(message, Prepare | Accept):
            return
        view = self._check_ready()
        if view.topology.change is not None:
            for storage_key in codec.unpack_blobs(message.keys):
                if voters_of(view, partition_in(storage_key[:2])).is_moving:
                    raise Busy(MOVING, retry_after_ms=_RETRY_MS)
        self._backlog.admit(WaitingWrite.of(request.ticket, message, None, envelope.epoch))

    def _check_ready(self) -> View:
        """Refuse registers while this peer can neither vote nor propose (V7, T6).

        Raises:
            Busy: the topology does not state yet that registers are served.
            NotReady: this peer has not streamed its data, or does not know the cluster's clock.
            UsageError: a member cannot vote, because of its version or durability.
        """
        view = self._view
        if view is None:
            raise NotReady(f"{self._peer} has no topology yet")
        if not self._is_durable:
            raise UsageError(
                f'registers need durability = "sync" or "interval"; {self._peer} has "none"'
            )
        if not view.topology.registers:
            self._raise_level(view)
        member = view.members.get(self._peer)
        if member is None or not member.synced:
            raise NotReady(f"{self._peer} has not streamed all of its data yet")
        if not self._clock.knows_majority:
            raise NotReady(f"{self._peer} does not know the clocks of a majority of members yet")
        return view

    def _raise_level(self, view: View) -> None:
        old = unable(view.topology)
        if old:
            raise UsageError(
                f"{', '.join(old)} runs an earlier version, which has no registers (indexes whose "
                "names begin with '@'); upgrade all members"
            )
        now = self._steady_time()
        if now >= self._propose_after:
            self._propose_after = now + _PROPOSE_MS
            self._propose(with_registers)
        raise Busy("the cluster is enabling registers", retry_after_ms=_RETRY_MS)

    # -- votes

    def voted(
        self, write: WaitingWrite, answer: Promised | Accepted
    ) -> tuple[Ticket, Message] | None:
        """Take an answer that is on disk; returns the reply to send, None if it is for itself.

        A vote counts only in its epoch (V7): a commit that ends later is not answered with it.
        """
        ticket = write.ticket
        view = self._view
        if view is None or write.epoch != view.epoch:
            stale = StaleEpoch(f"epoch {write.epoch} ended before the vote was on disk")
            return None if ticket.sender == _OWN else (ticket, Error.of(stale))
        is_own = ticket.sender == _OWN
        if isinstance(answer, Promised):
            answer = limited(answer, is_own=is_own)
        if not is_own:
            return ticket, answer
        self.coordinator.answered(ticket.correlation, answer, self._time())
        return None

    def refused(self, ticket: Ticket) -> bool:
        """Take note that this peer's own commit refused a request; false if it was another's."""
        if ticket.sender != _OWN:
            return False
        self.coordinator.failed(ticket.correlation, self._time())
        return True

    # -- messages

    def answered(self, peer: str, envelope: Envelope) -> bool:
        """Take a message of another peer; returns whether it answered a request for votes."""
        message = envelope.message
        if isinstance(message, Promised | Accepted):
            life = Life(message.life, message.began, message.high_water)
            store_id = self._local_partitions.store_ids.get(peer)
            if store_id is not None and life.number:
                self._local_partitions.memory.note(store_id, life)
        return self.coordinator.answered(envelope.correlation, message, self._time())

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self.coordinator.lost(peer, self._time())

    def unsent(self, outgoing: Outgoing) -> bool:
        """Take note that a message could not be sent; false if it requested no votes."""
        return self.coordinator.failed(outgoing.correlation, self._time())

    def tick(self) -> list[Outgoing]:
        """Return the messages to send now; this peer's own votes are queued for its disk."""
        if self._is_idle():
            return []  # the usual case, in each iteration of the loop
        self._conclude()
        sent = self.coordinator.tick(self._time())
        outgoing = []
        for item in sent:
            if item.peer == self._peer:
                self._vote(item)
            else:
                envelope = Envelope(item.correlation, item.epoch, 0, item.message)
                outgoing.append(Outgoing(item.peer, encode(envelope), item.correlation))
        return outgoing

    def _is_idle(self) -> bool:
        has_broken = self._preempted or len(self._local_partitions.corruption)
        return self.coordinator.is_idle and not has_broken

    def _vote(self, item: Outbound) -> None:
        if isinstance(item.message, Prepare | Accept):
            ticket = Ticket(_OWN, item.correlation)
            self._backlog.add(WaitingWrite.of(ticket, item.message, None, item.epoch))

    def take(self, now: int) -> Iterable[tuple[Ticket, Message]]:
        """Return the answers to clients that are ready."""
        return self._home.take(now)

    def wakeup(self, now: int) -> int | None:
        """Return in how many milliseconds ``tick`` and ``take`` are due; None if nothing waits."""
        waits = []
        due = self.coordinator.wakeup()
        if due is not None:
            waits.append(due - self._steady_time())
        deadline = self._home.wakeup()
        if deadline is not None:
            waits.append(deadline - now)
        return max(0, min(waits)) if waits else None

    def _lost_until(self, epoch: int, storage_key: bytes) -> Stamp:
        """Return the number up to which requests may have been applied without a trace (T7).

        Args:
            epoch: in which the number of the request was made.
            storage_key: of the register.
        """
        local_partitions = self._local_partitions
        if epoch >= max(local_partitions.lowering_epoch, local_partitions.lowered_in):
            return 0
        if local_partitions.is_lowering:
            return MAX_STAMP  # the floors of registers are not known yet
        floors = local_partitions.register_floors
        return floors[partition_in(storage_key)] if floors else 0

    def _missed(self, peer: str, storage_key: bytes) -> None:
        if peer != self._peer:
            self._hints.add(peer, [storage_key], self._steady_time())

    def _held(self, storage_key: bytes) -> bytes | None:
        """Return the record that this peer holds; ``UNKNOWN`` if it is not a sound register."""
        try:
            record = self._local_partitions.store.get(storage_key)
        except DStashError:  # the next commit reports it
            return UNKNOWN
        if record is None or (is_sound(storage_key, record) and is_register(record)):
            return record
        return UNKNOWN

    def _conclude(self) -> None:
        """Conclude registers that could not be merged, and those that are corrupt (V3, V4)."""
        now = self._steady_time()
        corruption = self._local_partitions.corruption
        if now < self._conclude_after or not (self._preempted or len(corruption)):
            return
        self._conclude_after = now + _CONCLUDE_MS
        view = self._view
        if view is None or not view.topology.registers or not self._may_vote(view):
            return
        if len(corruption):
            corrupt = itertools.chain.from_iterable(corruption.by_partition().values())
            self._preempted.update(filter(is_register_key, corrupt))
        # In order, so that a seed of the simulation gives one run; there may be many of them.
        for storage_key in heapq.nsmallest(_MAX_CONCLUDED, self._preempted):
            self._preempted.discard(storage_key)
            self.coordinator.conclude(storage_key)

    def _may_vote(self, view: View) -> bool:
        member = view.members.get(self._peer)
        is_counted = member is not None and member.synced and self._is_durable
        is_fresh = self._local_partitions.freshness_confirmed
        return is_counted and is_fresh and self._clock.knows_majority

    def _time(self) -> Time:
        clock = self._clock
        cluster = clock.time()
        expired = cluster - self._max_clock_skew_ms if clock.knows_majority else 0
        return Time(self._steady_time(), cluster, expired)


def _chances(seed: bytes) -> Callable[[], float]:
    """Return a function that returns a sequence of numbers from 0 to 1, which the seed decides."""
    numbers = itertools.count()
    return lambda: xxh3_64_intdigest(seed, next(numbers)) / _WORDS
