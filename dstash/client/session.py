"""What all calls of one client share: the view, the clock, whom not to trust for a while.

No I/O and no clock of its own: time is handed in. Safe to share between threads: every change
is the replacement of one attribute or one dictionary entry.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median_low
from typing import Final, NamedTuple

from dstash.client.outstanding import Missed, OutstandingWrites
from dstash.client.routing import Peers, WriteSet, all_table, read_table, write_table
from dstash.client.sightings import Sightings
from dstash.cluster.topology.topology import Topology, TransportSecurity
from dstash.cluster.topology.view import View
from dstash.errors import WrongCluster
from dstash.limits import CLOCK_SKEW_LIMIT, MAX_CLOCK_SKEW_MS
from dstash.store.record import partition_of
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
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Hello, Ping, TopologyRequest
from dstash.wire.protocol import LOWEST_PROTOCOL, common_protocol
from dstash.wire.replication import Hint
from dstash.wire.shapes import Message

#: A peer that says nothing for this long, with a request in hand, is asked last from then on.
SILENCE_MS = 300
#: How often such a peer is asked whether it is back.
PROBE_MS = 500

#: A replica without what was written this long ago has missed it: a write is hardly ever on its
#: way for longer.
MISSED_MS = 1000
#: How long such a replica is asked after the others: it is being healed meanwhile.
LAGGING_MS = 2000

#: Until when (milliseconds from now) a hint is of use to the replica that takes it.
HINT_MS: Final = 5000

#: Of so many members, at most, a majority must have told its clock before a write is stamped.
_CLOCKS: Final = 5

#: How long (milliseconds) ago a clock may have been read when stamps turn out to be wrong.
_CLOCK_LASTS_MS: Final = 2000

#: Keys of a batch that are sorted as one, before they are cut into requests.
KEYS_PER_BATCH = 100_000

#: Requests without a deadline: they cost little, and tell how the peer's clock stands.
_ALWAYS_ANSWERED = (TopologyRequest, Hello, Ping)


class Send(NamedTuple):
    """Frames for a peer, and the correlation id of the request they are."""

    peer: str
    frames: list[bytes]
    correlation: int


class Identity(NamedTuple):
    """Under which writer id, and by which clock, one process stamps its writes.

    It is replaced as a unit, so that a stamp is never used under the writer of another clock.
    ``successor`` has the identity that replaced it, so that threads agree on it.
    """

    process: int
    writer: bytes
    clock: Clock
    successor: dict[None, Identity]


class _ReadTable(NamedTuple):
    """A routing table and what it was made from."""

    view: View
    suspect: frozenset[str]
    lagging: frozenset[str]
    targets: list[Peers]


class Session:
    """The shared state of a client.

    Args:
        wall: returns milliseconds since 1970 on this machine, never going back.
        zone: prefer peers of this zone; empty for none.
        way: how to connect to peers.
        slab: keys of a batch that are sorted as one: many, for neighbours share pages on disk; few,
            where others wait for their turn meanwhile.
        random_bytes: source of writer ids, and of the chance in pauses.
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
        # A look-up gains less from neighbours than a write, and more from an early beginning.
        self.keys_per_read = max(1, batch_keys // 2)
        self._random_bytes = random_bytes
        self._process = process
        self.view: View | None = None
        self.value_bytes = 100.0  # running mean, to size requests by what their answers weigh
        self._offsets: dict[str, int] = {}
        self._read_at: dict[str, int] = {}  # peer -> when its clock was read last
        self._skews: dict[str, int] = {}  # peer -> how far ahead of its clock a version may be
        self._max_skew = MAX_CLOCK_SKEW_MS  # the smallest of them
        self._suspects: dict[str, int] = {}  # peer -> when it may be probed next
        self._lagging: dict[str, int] = {}  # peer -> until when it is asked after the others
        #: Writes that returned before every replica had answered.
        self.outstanding = OutstandingWrites()
        #: How new the stores of peers were.
        self.sightings = Sightings()
        self._probes: dict[str, tuple[int, int]] = {}  # peer -> (correlation, when it was sent)
        self._protocols: dict[str, int] = {}  # peer -> the version that both sides speak
        self._identity = self._new_identity()
        self._correlations = itertools.count(1)
        self._read_tables: dict[Level, _ReadTable] = {}
        self._write_table: tuple[View, list[WriteSet]] | None = None

    # -- time

    def cluster_time(self) -> int:
        """Return milliseconds since 1970 by the peers' clocks (the median, so one may be wrong)."""
        return self.wall() + self._offset()

    @property
    def offset(self) -> int:
        """How far the cluster's clock is ahead of this machine's, by all that is known."""
        return self._offset()

    def _offset(self) -> int:
        offsets = list(self._offsets.values())
        return median_low(offsets) if offsets else 0

    def peer_time(self, peer: str, moment: int) -> int:
        """Return a moment of this machine's clock by the clock of ``peer``."""
        offset = self._offsets.get(peer)
        return moment + (self._offset() if offset is None else offset)

    def stamp(self) -> Stamp:
        """Return a stamp for a write."""
        return self._current_identity().clock.tick()

    def is_from_the_future(self, stamp: Stamp) -> bool:
        """Whether peers refuse a stamp, by all that is known of their clocks."""
        return stamp_milliseconds(stamp) > self.cluster_time() + self._max_skew

    def new_version(self) -> Version:
        """Return a version for a write, above all that this client gave out or saw."""
        identity = self._current_identity()
        return pack(identity.clock.tick(), identity.writer)

    def version_past(self, stamp: Stamp) -> Version:
        """Return a version just above a stamp that is ahead of every clock.

        Its writer id is used once: the clock of this client may come to the same stamp later.
        """
        return pack(stamp + 1, self._random_bytes(WRITER_BYTES))

    def observe(self, stamp: Stamp) -> None:
        """Move the clock past a stamp that beat one of ours, unless it would be refused then."""
        if not self.is_from_the_future(stamp):
            self._current_identity().clock.observe(stamp)

    def _current_identity(self) -> Identity:
        """Return the identity to stamp with: another one in a forked child.

        Another one, too, where the clock has to be set back, because it followed the clock of a
        peer that turned out to be wrong: it may give the same stamps again.
        """
        while True:
            identity = self._identity
            is_ahead = self.is_from_the_future(identity.clock.last)
            if identity.process == self._process() and not is_ahead:
                return identity
            fresh = self._new_identity(0 if is_ahead else identity.clock.last)
            self._identity = identity.successor.setdefault(None, fresh)

    def _new_identity(self, floor: Stamp = 0) -> Identity:
        writer = self._random_bytes(WRITER_BYTES)
        return Identity(self._process(), writer, Clock(self.cluster_time, floor), {})

    def jittered(self, pause: int) -> int:
        """Return a pause, made longer by up to a half of it, by chance."""
        chance = int.from_bytes(self._random_bytes(2), "big") / 65_536
        return pause + round(pause * chance / 2)

    # -- peers

    def heard(self, peer: str) -> None:
        """Take note that a peer spoke."""
        self._suspects.pop(peer, None)

    def learn_clock(self, peer: str, clock: int, sent: int, now: int) -> None:
        """Take a reading of a peer's clock from its answer to a request (0: it gave none).

        It was taken between the moments ``sent`` and ``now``, so the offset lies between two
        bounds (Cristian, "Probabilistic Clock Synchronization", 1989). What is known is kept
        as far as it fits: a slow answer says little, a quick one much.
        """
        if clock:
            lowest, highest = clock - now, clock - sent
            known = self._offsets.get(peer, lowest)
            self._offsets[peer] = min(max(known, lowest), highest)
            self._read_at[peer] = now

    def distrust_old_clocks(self, now: int) -> None:
        """Forget clocks that were not read for a while: a stamp was refused as from the future.

        They may have been set since, and would keep outvoting those that were read just now.
        """
        self._offsets = {
            peer: offset
            for peer, offset in self._offsets.items()
            if now - self._read_at.get(peer, 0) <= _CLOCK_LASTS_MS
        }

    def unread_clocks(self) -> list[str]:
        """Return members whose clocks should be read before a write is stamped; none: enough are.

        Enough is a majority of all members, or of five of them.
        """
        members = self.view.members if self.view else {}
        read = [peer for peer in members if peer in self._offsets]
        if len(read) > min(_CLOCKS, len(members)) // 2:
            return []
        alive = self.view.alive if self.view else frozenset()
        unread = sorted(
            (peer for peer in members if peer not in self._offsets),
            key=lambda peer: (peer in self._suspects, peer not in alive, peer),
        )
        return unread[: max(0, _CLOCKS - len(read))]

    def learn_limits(self, peer: str, limits: Mapping[str, object]) -> None:
        """Take note of the clock skew that a peer allows, by the limits in its ``Welcome``.

        A stamp must be good for all replicas, so the smallest one counts. Peers of earlier versions
        do not tell theirs; the default is taken for them.
        """
        skew = limits.get(CLOCK_SKEW_LIMIT)
        self._skews[peer] = skew if isinstance(skew, int) and skew >= 0 else MAX_CLOCK_SKEW_MS
        self._max_skew = min(self._skews.values())

    def learn_protocol(self, peer: str, lowest: object, highest: object) -> bool:
        """Take note of the versions a peer speaks; whether there is one in common."""
        shared = common_protocol(lowest, highest)
        if shared is not None:
            self._protocols[peer] = shared
        return shared is not None

    def all_speak(self, peers: Sequence[str], version: int) -> bool:
        """Whether every one of some peers is known to speak a protocol version."""
        return all(self._protocols.get(peer, LOWEST_PROTOCOL) >= version for peer in peers)

    def forget_protocol(self, peer: str) -> None:
        """Take note that a connection broke: the peer may come back as an earlier version."""
        self._protocols.pop(peer, None)

    def suspect(self, peer: str, now: int) -> None:
        """Ask this peer last until it is heard again."""
        self._suspects.setdefault(peer, now + PROBE_MS)

    def is_suspect(self, peer: str) -> bool:
        """Whether this peer has not been heard since it failed."""
        return peer in self._suspects

    def mark_lagging(self, peer: str, missing: Version, now: int) -> None:
        """Ask a replica after the others for a while, if what it lacks is no news.

        A look-up that meets it pays for a second round and for the commit of the repair; one now
        and then is enough to learn whether it has caught up.
        """
        if stamp_milliseconds(newest_stamp(missing)) < self.cluster_time() - MISSED_MS:
            self._lagging[peer] = now + LAGGING_MS

    def _lagging_peers(self) -> frozenset[str]:
        if not self._lagging:
            return frozenset()
        now = self.wall()
        for peer in [one for one, until in list(self._lagging.items()) if until <= now]:
            self._lagging.pop(peer, None)
        return frozenset(self._lagging)

    def probes(self, now: int) -> list[Send]:
        """Return pings for avoided peers, each now and then: any answer brings them back.

        Another peer is asked for the topology meanwhile: they may have moved.
        """
        members = self.view.members if self.view else {}
        due = [
            peer for peer, when in list(self._suspects.items()) if when <= now and peer in members
        ]
        sends = []
        for peer in due:
            self._suspects[peer] = now + PROBE_MS
            send = self.request(peer, self.next_correlation(), 0, Ping())
            self._probes[peer] = (send.correlation, now)
            sends.append(send)
        others = [peer for peer in members if peer not in self._suspects] if due else []
        if others:
            sends.append(self.request(others[0], self.next_correlation(), 0, TopologyRequest()))
        return sends

    def hints(self, missed: Iterable[Missed], now: int) -> list[Send]:
        """Return messages that tell replicas which have a write that others missed it."""
        sends = []
        for peer, index, keys, holders in missed:
            holder = min(holders, key=lambda one: (one in self._suspects, one))
            hint, number = Hint(index, peer, keys), self.next_correlation()
            sends.append(self.request(holder, number, now + HINT_MS, hint))
        return sends

    def probe_sent(self, peer: str, correlation: int) -> int | None:
        """Return when the last ping for a peer was sent, if this is its correlation id."""
        known, sent = self._probes.get(peer, (0, 0))
        return sent if known == correlation else None

    # -- topology

    @property
    def is_lost(self) -> bool:
        """Whether the cluster must be found (again): no member is known to be where it was."""
        return self.view is None or all(peer in self._suspects for peer in self.view.members)

    @property
    def epoch(self) -> int:
        """The epoch of the view at hand, 0 before there is one."""
        return self.view.epoch if self.view else 0

    def install(self, topology: bytes, alive: list[str]) -> None:
        """Take a view from a peer, unless it is older than the one at hand.

        Raises:
            WrongCluster: it belongs to another cluster than the view at hand.
            ProtocolError: it is not a topology.
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
        self._forget_clocks(fresh)
        self.view = View(fresh, frozenset(alive) if alive else (current or View(fresh)).alive)

    def _forget_clocks(self, topology: Topology) -> None:
        """Go by the clocks of members alone: those that left must not outvote those that stay."""
        members = {member.id for member in topology.members}
        if not members.issuperset(self._offsets):
            self._offsets = {one: by for one, by in self._offsets.items() if one in members}
        if not members.issuperset(self._skews):
            self._skews = {peer: ms for peer, ms in self._skews.items() if peer in members}
            self._max_skew = min(self._skews.values(), default=MAX_CLOCK_SKEW_MS)

    def endpoint(self, peer: str) -> str | None:
        """Return where (and under which key) a peer is; None when it is not known."""
        if "://" in peer:
            return peer  # a seed: its id is not known yet
        member = self.view.members.get(peer) if self.view else None
        return member.endpoint(self.security) if member else None

    def read_targets(self, level: Level) -> list[Peers]:
        """Return whom to ask for each partition."""
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

    def all_targets(self) -> list[Peers]:
        """Return all who can be asked for each partition."""
        return all_table(self.known_view())

    def write_targets(self, view: View) -> list[WriteSet]:
        """Return who must hear of a write to each partition."""
        kept = self._write_table
        if kept is None or kept[0] is not view:
            kept = self._write_table = (view, write_table(view))
        return kept[1]

    def replicas_of(self, encoded: bytes) -> Peers:
        """Return the replica set of an encoded key, as reads use it."""
        return self.known_view().readers[partition_of(encoded)]

    def known_view(self) -> View:
        """Return the view at hand; there must be one."""
        if self.view is None:
            raise AssertionError("a call began before the view was known")
        return self.view

    # -- messages

    def greeting(self) -> list[bytes]:
        """Return the frames that begin a connection."""
        hello = Hello(seen=self.sightings.claims())
        return encode(Envelope(self.next_correlation(), 0, 0, hello))

    def next_correlation(self) -> int:
        """Return a number for a request, never used before by this client."""
        return next(self._correlations)

    def request(
        self,
        peer: str,
        correlation: int,
        deadline: int,
        message: Message,
        epoch: int | None = None,
        trace: str = "",
    ) -> Send:
        """Return a message for a peer, under the epoch it was routed by: the one at hand if None.

        Under a later one it would be accepted by replicas that it was not meant to rely on.
        ``trace`` is what it is part of.
        """
        moment = 0 if isinstance(message, _ALWAYS_ANSWERED) else self.peer_time(peer, deadline)
        under = self.epoch if epoch is None else epoch
        protocol = self._protocols.get(peer, LOWEST_PROTOCOL)
        envelope = Envelope(correlation, under, moment, message, protocol, trace)
        return Send(peer, encode(envelope), correlation)


def _is_another(known: Topology, fresh: Topology) -> bool:
    """Whether a topology is of another cluster. One that never formed may have been replaced."""
    if known.cluster_id == fresh.cluster_id:
        return False
    return known.formed or known.cluster != fresh.cluster
