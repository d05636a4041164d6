"""The topology: the one versioned map of a cluster.

There is one value, changed only by compare-and-set, and each change adds one to its epoch. All
that decides where data is stands in it; who is alive at the moment does not (see ``view``).

Its form outside a process is JSON, so that an operator can read it in Consul.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dstash.cluster.topology.rendezvous import Candidate
from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS
from dstash.types import Word

DEFAULT_REPLICAS: Final = 3


class State(Word):
    """Where a member stands in the change under way; ``active`` when there is none."""

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

    ``store_id`` names the store that was with this member when it was last known to hold its
    data; ``synced`` is false while it has not (its store is new, or too old) and must be filled
    before its answers count. ``key`` is the public CURVE key it answers with at ``address``,
    empty in an open cluster. ``plain`` is a second address without CURVE, only while an open
    cluster is being closed. ``seen`` is the newest life of that store (number, begin, newest stamp)
    that was known when the topology was changed last; see ``lineage``. ``waived`` names a store
    whose vote about the past an operator has given up: see ``changing.accept_loss``.
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

    def endpoint(self, way: TransportSecurity) -> str | None:
        """Return where (and under which key) a process connects to it; None when it must not."""
        if way is TransportSecurity.OPEN:
            return self.plain or self.address
        if self.key:
            return f"{self.address} {self.key}"
        return self.address if way is TransportSecurity.CLOSING else None

    @property
    def is_waived(self) -> bool:
        """Whether nothing waits for what this member's store may have known."""
        return not self.synced and self.waived == self.store_id

    @property
    def candidate(self) -> Candidate:
        """The member as placement sees it."""
        return Candidate(self.id, self.zone, self.weight)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of placement under way.

    ``complete`` lists the members that hold every partition they gain by it. ``number`` is the
    epoch in which it began. ``rate`` bounds each gaining member (bytes a second; 0: gently).
    ``switched``: all are complete, and reads use the new replica sets; writes still go to both,
    until nobody can read from the old ones any more. ``gone`` lists dead members for which its
    end does not wait, by an operator's order.
    """

    number: int
    complete: tuple[str, ...] = ()
    paused: bool = False
    rate: int = 0
    switched: bool = False
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """A topology that the membership had lost, restored by a peer that kept a copy.

    ``epoch`` is the epoch of that copy. ``confirmed`` lists the members that know of no newer one.
    Until they are a majority no peer serves under it: see ``joining.confirm``.
    """

    epoch: int
    confirmed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """The cluster.

    ``formed`` turns true when ``min_peers`` have joined, and stays so. ``restored`` is set while
    the topology is a copy that a majority of its members have not confirmed yet. ``ceiling`` is a
    stamp: floors and horizons above it were ordered, in the epoch ``ceiling_epoch`` (0: never), to
    be lowered to it. Each store does so once.
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

    def member(self, peer: str) -> Member | None:
        """Return the member with that id."""
        return next((member for member in self.members if member.id == peer), None)

    def with_member(self, member: Member) -> Topology:
        """Return the topology with a member added, or replaced by id."""
        others = [one for one in self.members if one.id != member.id]
        members = tuple(sorted([*others, member], key=lambda one: one.id))
        return replace(self, members=members)

    def without(self, peers: Iterable[str]) -> Topology:
        """Return the topology without those members."""
        gone = set(peers)
        return replace(self, members=tuple(one for one in self.members if one.id not in gone))

    def next(self) -> Topology:
        """Return the topology under the next epoch."""
        return replace(self, epoch=self.epoch + 1)

    def before(self) -> list[Member]:
        """Return the members that hold data before the change under way."""
        return [one for one in self.members if one.state is not State.JOINING]

    def after(self) -> list[Member]:
        """Return the members that hold data after the change under way."""
        return [one for one in self.members if one.state is not State.LEAVING]

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Topology:
        """Rebuild a topology from its JSON form; ``ProtocolError`` when it is not one.

        Unknown fields are ignored, so that peers of the next version may add some.
        """
        try:
            raw = json.loads(data)
            members = tuple(_member(one) for one in raw["members"])
            change, restored = raw.get("change"), raw.get("restored")
            return cls(
                **_known(cls, raw)
                | {
                    "members": members,
                    "change": None if change is None else _change(change),
                    "restored": None if restored is None else _restored(restored),
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
    lists = {name: tuple(raw.get(name, ())) for name in ("complete", "gone")}
    return Change(**_known(Change, raw) | lists)


def _restored(raw: dict[str, Any]) -> Restored:
    return Restored(int(raw["epoch"]), tuple(raw.get("confirmed", ())))


def _known(cls: Any, raw: dict[str, Any]) -> dict[str, Any]:
    return {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
