"""The topology: the versioned list of members and the running topology change of a cluster.

There is one value, which only compare-and-set changes, and each change adds one to its epoch. It
contains everything that decides the placement of data, but not which members are alive (see
``view``).

Outside a process it is JSON, so that an operator can read it in Consul.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dstash.cluster.topology.drops import Drop, decoded
from dstash.cluster.topology.indexes.settings import IndexSettings, decoded_settings
from dstash.cluster.topology.rendezvous import Candidate
from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS
from dstash.types import Word

DEFAULT_REPLICAS: Final = 3


class State(Word):
    """The state of a member in a topology change; ``active`` when there is none."""

    ACTIVE = "active"
    JOINING = "joining"
    LEAVING = "leaving"


class TransportSecurity(Word):
    """How a process connects: without CURVE, with it, or either while a cluster is closed."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Member:
    """One peer as the cluster knows it.

    ``store_id`` identifies the store of this member. ``synced`` is false while the store lacks data
    (because it is new or too old): the member must stream its data before its votes count. ``key``
    is the public CURVE key at ``address``, empty in an open cluster. ``plain`` is a second address
    without CURVE, only while an open cluster is being closed. ``seen`` is the newest life of the
    store (number, begin, newest stamp) that was known at the last change of the topology; see
    ``life``. ``waived`` is the id of a store whose loss an operator has accepted; see
    ``transitions.accept_loss``. ``features`` names what the version of this member can do beyond
    earlier versions, separated by spaces.
    """

    id: str
    address: str
    store_id: str
    zone: str
    weight: float = 1.0
    state: State = State.ACTIVE
    synced: bool = True
    http: str = ""
    key: str = ""
    plain: str = ""
    seen: tuple[int, ...] = ()
    waived: str = ""
    features: str = ""

    def endpoint(self, security: TransportSecurity) -> str | None:
        """Return the address (and key) to connect to; None if a connection is not allowed."""
        if security is TransportSecurity.OPEN:
            return self.plain or self.address
        if self.key:
            return f"{self.address} {self.key}"
        return self.address if security is TransportSecurity.CLOSING else None

    @property
    def is_waived(self) -> bool:
        """Whether an operator has accepted the loss of this member's data."""
        return not self.synced and self.waived == self.store_id

    @property
    def candidate(self) -> Candidate:
        """The member as placement sees it."""
        return Candidate(self.id, self.zone, self.weight)


@dataclass(frozen=True, slots=True)
class Change:
    """A running topology change.

    ``number`` is the epoch in which it began. ``complete`` lists the members that have streamed
    every partition they gain. ``rate`` limits each of these members (bytes a second; 0: no rate).
    ``switched`` means that all are complete and reads use the new replica sets; writes still go to
    both until no quorum serves the old replica sets. ``gone`` lists members that an operator has
    force-removed, so that the end of the change does not wait for them.

    ``registers_last``: whether registers are streamed last. Until then their old replicas serve
    them; then ``resting`` is set, and no replica does until the change ends.
    ``registers_complete`` lists the members that have streamed all registers they gain.
    """

    number: int
    complete: tuple[str, ...] = ()
    paused: bool = False
    rate: int = 0
    switched: bool = False
    gone: tuple[str, ...] = ()
    registers_last: bool = False
    resting: bool = False
    registers_complete: tuple[str, ...] = ()

    @property
    def serves_registers(self) -> bool:
        """Whether the old replicas of partitions that move still serve registers (T1)."""
        return self.registers_last and not (self.resting or self.switched)


@dataclass(frozen=True, slots=True)
class Restored:
    """The origin of a topology that the membership had lost and a peer restored from its copy.

    ``epoch`` is the epoch of that copy. ``confirmed`` lists the members that have no newer copy.
    Until they are a majority, no peer serves requests under it; see ``joining.confirm``.
    """

    epoch: int
    confirmed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """The cluster.

    ``formed`` becomes true when ``min_peers`` have joined, and stays true. ``restored`` is set
    while the topology is a copy that a majority of its members have not confirmed yet. ``ceiling``
    is a stamp to which an operator has requested, in the epoch ``ceiling_epoch`` (0: never), that
    all floors and horizons above it be lowered. Each store does so once. ``drops`` are the drops
    that are not settled; see ``drops.py``. ``registers``: whether registers are served; see
    ``registers.py``. ``indexes`` are the settings of indexes, by name, and ``indexes_epoch`` is the
    epoch of the last request about them (0: never).
    """

    cluster: str
    cluster_id: str
    epoch: int
    replicas: int = DEFAULT_REPLICAS
    min_peers: int = 1
    formed: bool = False
    partitions: int = PARTITIONS
    members: tuple[Member, ...] = ()
    change: Change | None = None
    restored: Restored | None = None
    ceiling: int = 0
    ceiling_epoch: int = 0
    drops: tuple[Drop, ...] = ()
    registers: bool = False
    indexes: tuple[IndexSettings, ...] = ()
    indexes_epoch: int = 0

    def index_settings(self, index: str) -> IndexSettings | None:
        """Return the settings of an index; None if it has none."""
        return next((known for known in self.indexes if known.name == index), None)

    def member(self, peer: str) -> Member | None:
        """Return the member with an id; None if there is none."""
        return next((member for member in self.members if member.id == peer), None)

    def with_member(self, member: Member) -> Topology:
        """Return the topology with a member added, or replaced by id."""
        by_id = {known.id: known for known in self.members} | {member.id: member}
        return replace(self, members=tuple(by_id[peer] for peer in sorted(by_id)))

    def without(self, peers: Iterable[str]) -> Topology:
        """Return the topology without some members."""
        removed = set(peers)
        members = tuple(member for member in self.members if member.id not in removed)
        return replace(self, members=members)

    def next(self) -> Topology:
        """Return the topology with the next epoch."""
        return replace(self, epoch=self.epoch + 1)

    def before(self) -> list[Member]:
        """Return the members that hold data before the topology change."""
        return [member for member in self.members if member.state is not State.JOINING]

    def after(self) -> list[Member]:
        """Return the members that hold data after the topology change."""
        return [member for member in self.members if member.state is not State.LEAVING]

    def holders(self) -> list[Member]:
        """Return the members that reads use: those before the change until it switches."""
        is_switched = self.change is not None and self.change.switched
        return self.after() if is_switched else self.before()

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Topology:
        """Return a topology from its JSON form; ``ProtocolError`` if it is malformed.

        Unknown fields are ignored, so that peers of the next version may add some.
        """
        try:
            raw = json.loads(data)
            members = tuple(_member(member) for member in raw["members"])
            change, restored = raw.get("change"), raw.get("restored")
            return cls(
                **_known(cls, raw)
                | {
                    "members": members,
                    "change": None if change is None else _change(change),
                    "restored": None if restored is None else _restored(restored),
                    "drops": tuple(map(decoded, raw.get("drops", ()))),
                    "indexes": tuple(map(decoded_settings, raw.get("indexes", ()))),
                }
            )._checked()
        except ProtocolError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ProtocolError(f"not a topology: {error}") from None

    def _checked(self) -> Topology:
        ids = [member.id for member in self.members]
        if len(set(ids)) != len(ids):
            raise ProtocolError("topology names a member twice")
        if self.partitions != PARTITIONS:
            raise ProtocolError(
                f"topology has {self.partitions} partitions; this version has {PARTITIONS}"
            )
        if self.epoch < 1 or self.replicas < 1 or self.min_peers < 1:
            raise ProtocolError("topology has an epoch, replicas or min_peers below 1")
        return self


def _member(raw: dict[str, Any]) -> Member:
    seen = tuple(map(int, raw.get("seen", ())))
    member = Member(**_known(Member, raw) | {"state": State(raw["state"]), "seen": seen})
    if not member.id or not 0 < float(member.weight) < 1e6:
        raise ProtocolError(f"topology has a member without id or weight: {raw!r}")
    return member


def _change(raw: dict[str, Any]) -> Change:
    lists = {name: tuple(raw.get(name, ())) for name in ("complete", "gone", "registers_complete")}
    return Change(**_known(Change, raw) | lists)


def _restored(raw: dict[str, Any]) -> Restored:
    return Restored(int(raw["epoch"]), tuple(raw.get("confirmed", ())))


def _known(cls: Any, raw: dict[str, Any]) -> dict[str, Any]:
    return {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
