"""The state that all calls of a client share: view, clocks, suspect and lagging peers.

It does no I/O and reads no clock: the caller passes the time in. It is thread-safe without a lock,
because every change replaces one attribute or one dictionary entry.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dstash.client.outstanding import Missed, OutstandingWrites
from dstash.client.routing import (
    Peers,
    Table,
    WriteSet,
    all_table,
    home_table,
    read_table,
    write_table,
)
from dstash.client.sightings import Sightings
from dstash.cluster.topology.topology import Topology, TransportSecurity
from dstash.cluster.topology.view import View
from dstash.errors import WrongCluster
from dstash.limits import CLOCK_SKEW_LIMIT, MAX_CLOCK_SKEW_MS
from dstash.store.record import partition_of
from dstash.store.sharing.places import StorePlace
from dstash.types import Level
from dstash.version import (
    WRITER_BYTES,
    Clock,
    Stamp,
    Version,
    newest_stamp,
    pack,
    stamp_milliseconds,
)
from dstash.wire.codec import pack_header
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Hello, Ping, TopologyRequest
from dstash.wire.protocol import LOWEST_PROTOCOL, common_protocol
from dstash.wire.replication import Hint
from dstash.wire.shapes import Message

#: A peer that leaves a request unanswered for this long becomes suspect.
SILENCE_MS = 300
#: How often a suspect peer is pinged.
PROBE_MS = 500

#: A replica that lacks a write of this age has missed it: a write is rarely in transit for longer.
MISSED_MS = 1000
#: How long a replica counts as lagging: by then, repair has usually caught up.
LAGGING_MS = 2000

#: Deadline of a hint, in milliseconds from now.
HINT_MS: Final = 5000

#: A majority of at most this many members must have reported its clock before the first write.
_MAX_CLOCKS: Final = 5

#: Maximum age of a clock reading, once a stamp was rejected.
_MAX_CLOCK_AGE_MS: Final = 2000

#: Keys of a batch that are sorted together before they are cut into requests.
KEYS_PER_BATCH = 100_000

#: Requests without a deadline: they cost little, and their answers report the clock of the peer.
_ALWAYS_ANSWERED = (TopologyRequest, Hello, Ping)


class Send(NamedTuple):
    """The frames of a request for a peer, and its correlation id."""

    peer: str
    frames: list[bytes]
    correlation: int


class Identity(NamedTuple):
    """The writer id and the clock with which one process stamps its writes.

    It is replaced as a whole, so that a stamp never occurs with the writer id of another clock.
    ``successor`` holds the identity that replaced it, so that all threads use the same identity.
    """

    process: int
    writer: bytes
    clock: Clock
    successor: dict[None, Identity]


class _ReadTable(NamedTuple):
    """A routing table and its inputs."""

    view: View
    suspect: frozenset[str]
    lagging: frozenset[str]
    targets: Table[Peers]


class Session:
    """The shared state of a client.

    Args:
        wall: returns milliseconds since 1970 by the clock of this machine; never decreases.
        zone: prefer peers of this zone; empty for none.
        security: transport security of connections to peers.
        batch_keys: keys of a batch that are sorted together. Many are better for the disk, because
            neighbours share pages; few are better for an event loop, which they block.
        random_bytes: source of writer ids, and of jitter.
        process: returns the id of the process, which changes in a forked child.
    """

    def __init__(
        self,
        wall: Callable[[], int],
        *,
        zone: str = "",
        security: TransportSecurity = TransportSecurity.OPEN,
        batch_keys: int = KEYS_PER_BATCH,
        random_bytes: Callable[[int], bytes] = os.urandom,
        process: Callable[[], int] = os.getpid,
    ) -> None:
        self.wall = wall
        self.zone = zone
        self.security = security
        self.batch_keys = batch_keys
        # A look-up gains less from neighbouring keys than a write, and more from an early start.
        self.keys_per_read = max(1, batch_keys // 2)
        self.random_bytes = random_bytes
        self.process = process
        self.view: View | None = None
        self.value_bytes = 100.0  # running mean, to bound the size of answers
        self._offsets: dict[str, int] = {}
        self._read_at: dict[str, int] = {}  # peer -> when its clock was last read
        self._skews: dict[str, int] = {}  # peer -> how far versions may be ahead of its clock
        self._max_skew = MAX_CLOCK_SKEW_MS  # the smallest of them
        self._suspects: dict[str, int] = {}  # peer -> when it is pinged next
        self.lagging: dict[str, int] = {}  # peer -> until when it counts as lagging
        #: Where each peer shares its store with clients of its machine. Replaced, never changed.
        self.places: Mapping[str, StorePlace] = {}
        #: Writes that returned before all replicas answered.
        self.outstanding = OutstandingWrites()
        #: The newest stamp of each store that this client saw.
        self.sightings = Sightings()
        self._probes: dict[str, tuple[int, int]] = {}  # peer -> (correlation id, time sent)
        self._view_due = 0  # when the topology may be requested again
        self._view_turn = itertools.count()
        self._protocols: dict[str, int] = {}  # peer -> the version that both sides speak
        self._identity = self._new_identity()
        self._correlations = itertools.count(1)
        self._read_tables: dict[Level, _ReadTable] = {}
        self._home_table: _ReadTable | None = None
        self._write_table: tuple[View, Table[WriteSet]] | None = None

    # -- time

    def cluster_time(self) -> int:
        """Return milliseconds since 1970 by the cluster clock (the median of the peers)."""
        return self.wall() + self.offset

    @property
    def offset(self) -> int:
        """How far the cluster clock is ahead of the clock of this machine, in milliseconds."""
        offsets = sorted(self._offsets.values())
        return offsets[(len(offsets) - 1) // 2] if offsets else 0

    def peer_time(self, peer: str, moment: int) -> int:
        """Convert a time of this machine to the clock of ``peer``."""
        offset = self._offsets.get(peer)
        return moment + (self.offset if offset is None else offset)

    def stamp(self) -> Stamp:
        """Return a stamp for a write."""
        return self._current_identity().clock.tick()

    def is_from_the_future(self, stamp: Stamp) -> bool:
        """Whether peers would reject a stamp as future, by the known clocks."""
        return stamp_milliseconds(stamp) > self.cluster_time() + self._max_skew

    def new_version(self) -> Version:
        """Return a version for a write, above all versions that this client issued or saw."""
        identity = self._current_identity()
        return pack(identity.clock.tick(), identity.writer)

    def version_past(self, stamp: Stamp) -> Version:
        """Return a version just above a stamp that is ahead of every clock.

        It has its own writer id, because the clock of this client may reach the same stamp later.
        """
        return pack(stamp + 1, self.random_bytes(WRITER_BYTES))

    def observe(self, stamp: Stamp) -> None:
        """Move the clock past a stamp that superseded ours, unless peers would reject it then."""
        if not self.is_from_the_future(stamp):
            self._current_identity().clock.observe(stamp)

    def _current_identity(self) -> Identity:
        """Return the identity to stamp with.

        A forked child gets a new identity. So does a client whose clock must be set back, because
        it followed a peer whose clock was wrong: it may issue the same stamps again.
        """
        while True:
            identity = self._identity
            is_ahead = self.is_from_the_future(identity.clock.last)
            if identity.process == self.process() and not is_ahead:
                return identity
            fresh = self._new_identity(0 if is_ahead else identity.clock.last)
            self._identity = identity.successor.setdefault(None, fresh)

    def _new_identity(self, floor: Stamp = 0) -> Identity:
        writer = self.random_bytes(WRITER_BYTES)
        return Identity(self.process(), writer, Clock(self.cluster_time, floor), {})

    def jittered(self, pause: int) -> int:
        """Return a pause extended by a random part, up to a half of it."""
        return pause + round(pause * self.random_share() / 2)

    def random_share(self) -> float:
        """Return a random number from 0 up to, but not including, 1."""
        return int.from_bytes(self.random_bytes(2), "big") / 65_536

    # -- peers

    def heard(self, peer: str) -> None:
        """Record that a peer answered: it is no longer suspect."""
        self._suspects.pop(peer, None)

    def learn_clock(self, peer: str, clock: int, sent: int, now: int) -> None:
        """Record a reading of a peer's clock from its answer to a request (0: no reading).

        The peer read its clock between ``sent`` and ``now``, so its offset lies between two bounds
        (Cristian, "Probabilistic Clock Synchronization", 1989). The known offset is only moved into
        these bounds: a slow answer changes little, a fast answer is exact.
        """
        if clock:
            lowest, highest = clock - now, clock - sent
            known = self._offsets.get(peer, lowest)
            self._offsets[peer] = min(max(known, lowest), highest)
            self._read_at[peer] = now

    def distrust_old_clocks(self, now: int) -> None:
        """Drop clock readings that are old, after a stamp was rejected as future.

        Those clocks may have been set since; old readings would outvote the current readings.
        """
        self._offsets = {
            peer: offset
            for peer, offset in self._offsets.items()
            if now - self._read_at.get(peer, 0) <= _MAX_CLOCK_AGE_MS
        }

    def unread_clocks(self) -> list[str]:
        """Return members whose clocks must be read before a write is stamped.

        The result is empty once a majority has been read: of all members, or of five of them.
        """
        members = self.view.members if self.view else {}
        read = [peer for peer in members if peer in self._offsets]
        if len(read) > min(_MAX_CLOCKS, len(members)) // 2:
            return []
        alive = self.view.alive if self.view else frozenset()
        unread = sorted(
            (peer for peer in members if peer not in self._offsets),
            key=lambda peer: (peer in self._suspects, peer not in alive, peer),
        )
        return unread[: max(0, _MAX_CLOCKS - len(read))]

    def learn_limits(self, peer: str, limits: Mapping[str, object]) -> None:
        """Record the clock skew that a peer allows, from the limits in its ``Welcome``.

        All replicas must accept a stamp, so the smallest value counts. Peers of earlier versions do
        not report it; the default counts for them.
        """
        skew = limits.get(CLOCK_SKEW_LIMIT)
        self._skews[peer] = skew if isinstance(skew, int) and skew >= 0 else MAX_CLOCK_SKEW_MS
        self._max_skew = min(self._skews.values())

    def learn_place(self, peer: str, fields: list[Any]) -> None:
        """Record where a peer shares its store, from its ``Welcome``; empty if it does not."""
        place = StorePlace.of(fields)
        if place == self.places.get(peer):
            return
        others = {name: known for name, known in self.places.items() if name != peer}
        self.places = others if place is None else {**others, peer: place}

    def learn_protocol(self, peer: str, lowest: object, highest: object) -> bool:
        """Record the protocol versions of a peer; return whether there is a common version."""
        shared = common_protocol(lowest, highest)
        if shared is not None:
            self._protocols[peer] = shared
        return shared is not None

    def all_speak(self, peers: Sequence[str], version: int) -> bool:
        """Whether all of these peers are known to support a protocol version."""
        return all(self._protocols.get(peer, LOWEST_PROTOCOL) >= version for peer in peers)

    def forget_protocol(self, peer: str) -> None:
        """Record that a connection broke: the peer may restart as an earlier version."""
        self._protocols.pop(peer, None)

    def suspect(self, peer: str, now: int) -> None:
        """Mark a member as suspect until it answers again.

        Other peers, such as a silent seed, are never pinged, so they would remain suspect.
        """
        if self.view is not None and peer in self.view.members:
            self._suspects.setdefault(peer, now + PROBE_MS)

    def is_suspect(self, peer: str) -> bool:
        """Whether a peer is suspect."""
        return peer in self._suspects

    def mark_lagging(self, peer: str, missing: Version, now: int) -> None:
        """Mark a replica as lagging, if the write that it lacks is not recent.

        A look-up that reads from it costs a second round and the commit of a repair; one every two
        seconds is enough to find out whether it has caught up.
        """
        if stamp_milliseconds(newest_stamp(missing)) < self.cluster_time() - MISSED_MS:
            self.lagging[peer] = now + LAGGING_MS

    def _lagging_peers(self) -> frozenset[str]:
        if not self.lagging:
            return frozenset()
        now = self.wall()
        for peer in [peer for peer, until in list(self.lagging.items()) if until <= now]:
            self.lagging.pop(peer, None)
        return frozenset(self.lagging)

    def probes(self, now: int) -> list[Send]:
        """Return the pings that are due for suspect peers; any answer ends the suspicion.

        Another peer gets a request for the topology, because suspect peers may have moved.
        """
        members = self.view.members if self.view else {}
        suspects = list(self._suspects.items())
        due = [peer for peer, due_at in suspects if due_at <= now and peer in members]
        for peer, _ in suspects:
            if peer not in members:  # suspected while another thread installed a view without it
                self._suspects.pop(peer, None)
        sends = []
        for peer in due:
            self._suspects[peer] = now + PROBE_MS
            send = self.request(peer, self.next_correlation(), 0, Ping())
            self._probes[peer] = (send.correlation, now)
            sends.append(send)
        trusted = [peer for peer in members if peer not in self._suspects] if due else []
        if trusted:
            sends.append(self.request(trusted[0], self.next_correlation(), 0, TopologyRequest()))
        return sends

    def view_request(self, now: int) -> list[Send]:
        """Return a request for the topology to one of the members, at most every half second.

        For calls that wait without a request to any peer, because the view has too few replicas for
        them: no answer would bring them a newer view.
        """
        if self.view is None or now < self._view_due <= now + PROBE_MS:
            return []
        self._view_due = now + PROBE_MS
        members = sorted(self.view.members)
        able = [peer for peer in members if peer not in self._suspects] or members
        peer = able[next(self._view_turn) % len(able)]
        return [self.request(peer, self.next_correlation(), 0, TopologyRequest())]

    def hints(self, missed: Iterable[Missed], now: int) -> list[Send]:
        """Return hints for replicas that have a write, about replicas that missed it."""
        sends = []
        for peer, index, keys, holders in missed:
            holder = min(holders, key=lambda peer: (peer in self._suspects, peer))
            hint, number = Hint(index, peer, keys), self.next_correlation()
            sends.append(self.request(holder, number, now + HINT_MS, hint))
        return sends

    def probe_sent(self, peer: str, correlation: int) -> int | None:
        """Return when the last ping of a peer was sent, if it has this correlation id."""
        known, sent = self._probes.get(peer, (0, 0))
        return sent if known == correlation else None

    # -- topology

    @property
    def is_lost(self) -> bool:
        """Whether the cluster must be discovered (again), because all members are suspect."""
        return self.view is None or all(peer in self._suspects for peer in self.view.members)

    @property
    def epoch(self) -> int:
        """The epoch of the current view, 0 if there is none."""
        return self.view.epoch if self.view else 0

    def install(self, topology: bytes, alive: list[str]) -> None:
        """Replace the view by the view of a peer, unless the current view is newer.

        Raises:
            WrongCluster: the topology is that of another cluster.
            ProtocolError: ``topology`` cannot be decoded.
        """
        fresh = Topology.decode(topology)
        current = self.view
        if current is not None and _is_another(current.topology, fresh):
            raise WrongCluster(
                f"expected cluster {current.topology.cluster!r} ({current.topology.cluster_id}), "
                f"a peer answered for {fresh.cluster!r} ({fresh.cluster_id})"
            )
        is_same = current is not None and current.topology.cluster_id == fresh.cluster_id
        if current is not None and is_same and fresh.epoch < current.epoch:
            return
        self._forget_others(fresh)
        self.view = View(fresh, frozenset(alive) if alive else (current or View(fresh)).alive)

    def _forget_others(self, topology: Topology) -> None:
        """Forget peers that are no members: their clocks must not outvote those of members."""
        members = {member.id for member in topology.members}
        suspects = list(self._suspects.items())
        if not members.issuperset(peer for peer, _ in suspects):
            self._suspects = {peer: due for peer, due in suspects if peer in members}
        if not members.issuperset(self._offsets):
            self._offsets = {peer: ms for peer, ms in self._offsets.items() if peer in members}
        if not members.issuperset(self._skews):
            self._skews = {peer: ms for peer, ms in self._skews.items() if peer in members}
            self._max_skew = min(self._skews.values(), default=MAX_CLOCK_SKEW_MS)

    def endpoint(self, peer: str) -> str | None:
        """Return the address of a peer, with its key if it has a key; None if it is unknown."""
        if "://" in peer:
            return peer  # a seed: its id is unknown so far
        member = self.view.members.get(peer) if self.view else None
        return member.endpoint(self.security) if member else None

    def read_targets(self, level: Level) -> Table[Peers]:
        """Return the peers to read from, by partition."""
        view, suspect, lagging = self.known_view(), frozenset(self._suspects), self._lagging_peers()
        kept = self._read_tables.get(level)
        if (
            kept is None
            or kept.view is not view
            or (kept.suspect, kept.lagging) != (suspect, lagging)
        ):
            table = read_table(view, level, self.zone, suspect, lagging)
            kept = self._read_tables[level] = _ReadTable(view, suspect, lagging, table)
        return kept.targets

    def calm_view(self, now: int) -> View | None:
        """Return the view if all is well, else None.

        It is None while a peer is suspect, while writes lack an overdue answer, and before the
        cluster is found.
        """
        if self._suspects or (self.outstanding and self.outstanding.is_overdue(now)):
            return None
        return self.view

    def calm_table(self, level: Level, now: int) -> Table[Peers] | None:
        """Return the peers to read from, by partition, if all is well and no peer is lagging."""
        view = self.calm_view(now)
        if view is None or self.lagging:
            return None
        kept = self._read_tables.get(level)
        if kept is None or kept.view is not view or kept.suspect or kept.lagging:
            return self.read_targets(level)
        return kept.targets

    def learn_size(self, mean: float) -> None:
        """Take the mean size (bytes) of the values in an answer."""
        self.value_bytes += (mean - self.value_bytes) / 8

    def homes(self) -> Table[Peers]:
        """Return the peers to ask for registers, by partition: the home first, then the others."""
        view, suspect = self.known_view(), frozenset(self._suspects)
        kept = self._home_table
        if kept is None or kept.view is not view or kept.suspect != suspect:
            table = home_table(view, suspect)
            kept = self._home_table = _ReadTable(view, suspect, frozenset(), table)
        return kept.targets

    def all_targets(self) -> Table[Peers]:
        """Return all peers that can be read from, by partition."""
        return all_table(self.known_view())

    def write_targets(self, view: View) -> Table[WriteSet]:
        """Return the peers to write to, by partition."""
        kept = self._write_table
        if kept is None or kept[0] is not view:
            kept = self._write_table = (view, write_table(view))
        return kept[1]

    def replicas_of(self, encoded: bytes) -> Peers:
        """Return the replica set of an encoded key that reads use."""
        return self.known_view().readers[partition_of(encoded)]

    def known_view(self) -> View:
        """Return the current view, which must exist."""
        if self.view is None:
            raise AssertionError("a call started before the cluster was found")
        return self.view

    # -- messages

    def greeting(self) -> list[bytes]:
        """Return the first message of a connection."""
        hello = Hello(seen=self.sightings.claims())
        return encode(Envelope(self.next_correlation(), 0, 0, hello))

    def next_correlation(self) -> int:
        """Return a correlation id that this client has not used before."""
        return next(self._correlations)

    def short_request(
        self,
        peer: str,
        correlation: int,
        deadline: int,
        epoch: int,
        kind: int,
        fields: tuple[Any, ...],
        body: tuple[bytes, ...],
    ) -> Send:
        """Return what ``request`` returns, without the objects of message and envelope.

        Args:
            peer: to send it to.
            correlation: its correlation id.
            deadline: in milliseconds by the clock of this machine.
            epoch: of the view that it was routed by.
            kind: of the message.
            fields: of the message, without those that are omitted.
            body: its body frames.
        """
        protocol = self._protocols.get(peer, LOWEST_PROTOCOL)
        header = (protocol, kind, correlation, epoch, self.peer_time(peer, deadline), *fields)
        return Send(peer, [pack_header(header), *body], correlation)

    def request(
        self,
        peer: str,
        correlation: int,
        deadline: int,
        message: Message,
        epoch: int | None = None,
        trace: str = "",
    ) -> Send:
        """Return a request for a peer.

        Args:
            peer: to send it to.
            correlation: its correlation id.
            deadline: in milliseconds by the clock of this machine.
            message: of the request.
            epoch: of the view that it was routed by; None for the current view. With a later epoch,
                peers would accept it that are not replicas in that view.
            trace: trace context; empty for none.
        """
        moment = 0 if isinstance(message, _ALWAYS_ANSWERED) else self.peer_time(peer, deadline)
        routed_by = self.epoch if epoch is None else epoch
        protocol = self._protocols.get(peer, LOWEST_PROTOCOL)
        envelope = Envelope(correlation, routed_by, moment, message, protocol, trace)
        return Send(peer, encode(envelope), correlation)


def _is_another(known: Topology, fresh: Topology) -> bool:
    """Whether a topology is of another cluster; one that never formed may be replaced."""
    if known.cluster_id == fresh.cluster_id:
        return False
    return known.formed or known.cluster != fresh.cluster
