"""The messages between clients and peers.

``docs/protocol.md`` describes them, and those between peers (``replication.py``), for other
languages; ``envelope.py`` makes frames of them.
"""

from __future__ import annotations

from dataclasses import field
from enum import IntFlag
from typing import Any

from dstash.errors import DStashError, from_wire
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL
from dstash.wire.shapes import EMPTY, Frame, Message, message, rarely_set


class Want(IntFlag):
    """What a ``Lookup`` asks for. Which keys are missing is always answered.

    With ``CONTENT`` the digest covers checksums too. Only peers that speak protocol version 2 know
    it, so a client sets it only if every peer that it compares does.
    """

    VALUES = 1
    DIGEST = 2
    CONTENT = 4


@message
class Hello(Message):
    """The first message on a connection.

    ``seen`` is what a client saw of the stores of peers: ``[store id, life, begin, stamp]`` of each
    life of a store, with the newest stamp that a peer acked in it. See ``cluster/lineage.py``.
    """

    KIND = 1
    cluster: str = ""
    lowest: int = LOWEST_PROTOCOL
    highest: int = HIGHEST_PROTOCOL
    sender: str = ""
    seen: list[list[Any]] = rarely_set([])


@message
class Welcome(Message):
    """Answers ``Hello``: who the peer is, what it speaks, how the cluster looks.

    ``store`` is ``[store id, life, begin, stamp]`` of the peer's store; the stamp is 0 while the
    peer does not know whether its store is as new as it was.
    """

    KIND = 2
    cluster: str
    peer: str
    lowest: int
    highest: int
    limits: dict[str, int]
    topology: bytes
    alive: list[str]
    store: list[Any] = rarely_set([])


@message
class Error(Message):
    """A request was refused as a whole."""

    KIND = 3
    code: int
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: DStashError) -> Error:
        """Return the wire form of an error."""
        return cls(error.code, str(error), error.details)

    def error(self) -> DStashError:
        """Return the error that the other side meant."""
        details = {name: fact for name, fact in self.details.items() if isinstance(name, str)}
        details.pop("message", None)
        return from_wire(self.code, self.text, details)


@message
class Ping(Message):
    """Asks for a ``Pong``: the peer's clock and epoch."""

    KIND = 4


@message
class Pong(Message):
    """Answers ``Ping``."""

    KIND = 5


@message
class TopologyRequest(Message):
    """Asks for the topology and for who is alive."""

    KIND = 6


@message
class TopologyReply(Message):
    """The topology as the peer knows it (its JSON form) and the ids of the live peers."""

    KIND = 7
    topology: bytes
    alive: list[str]


@message
class Lookup(Message):
    """Asks for values by key, or for a digest over their versions, or both."""

    KIND = 10
    index: str
    want: int
    keys: Frame


@message
class Values(Message):
    """Answers ``Lookup``.

    ``answered`` keys were looked up: fewer than were asked when the reply would have become too
    large. ``values`` is one msgpack array with the values in the order of the keys, nil where
    there is none; ``missing`` lists those positions (a stored nil is not missing). ``corrupt``
    lists positions whose record failed its checksum. ``digest`` covers the versions of the keys, or
    checksums and versions if the request wants ``CONTENT``. A record that is dead at the horizon of
    its partition counts as absent in it.
    """

    KIND = 11
    answered: int
    digest: bytes
    missing: list[int]
    corrupt: list[int]
    values: Frame


@message
class Put(Message):
    """Stores values under one version and one expiry (ms since 1970, 0 = never).

    ``replaces`` holds earlier versions of this very write, 20 bytes each, that were refused as from
    the future: where one of them is stored, it gives way although it is higher.
    """

    KIND = 14
    index: str
    version: bytes
    expiry: int
    keys: Frame
    payloads: Frame
    replaces: bytes = rarely_set(b"")


@message
class Stored(Message):
    """Answers ``Put``, ``Delete`` and ``Apply`` once all is on disk.

    ``rejected`` holds ``[position, code, detail]`` for keys that were not stored: code 0 with the
    stored version when a higher one is there (superseded), else an error code with its text.
    ``existed`` has a byte per key (of ``Delete``): 1 where a live record was there before.
    """

    KIND = 15
    rejected: list[list[Any]]
    existed: bytes = b""


@message
class Delete(Message):
    """Writes tombstones under one version. ``replaces`` is as in ``Put``."""

    KIND = 16
    index: str
    version: bytes
    keys: Frame
    replaces: bytes = rarely_set(b"")


@message
class Fetch(Message):
    """Asks for whole records: version, flags, expiry, checksum and payload."""

    KIND = 17
    index: str
    keys: Frame


@message
class Records(Message):
    """Answers ``Fetch``: an array of records, nil where there is none or it is damaged.

    A record that is dead at the horizon of its partition counts as none.
    """

    KIND = 18
    corrupt: list[int]
    records: Frame


@message
class Apply(Message):
    """Stores whole records with the versions they carry (read repair, touch)."""

    KIND = 19
    index: str
    keys: Frame
    records: Frame


@message
class Scan(Message):
    """Asks for one page of an index, walking ``partitions`` in the order given.

    ``partitions`` is a sequence of big-endian 16-bit numbers. ``after`` is the last key of the
    page before, in the first partition of the list; empty to begin with.

    With ``digest`` the page also has the digest of each partition that it met something in, and a
    damaged record does not end it. A peer of an earlier version ignores that.
    """

    KIND = 20
    index: str
    prefix: bytes
    partitions: bytes
    after: bytes
    max_keys: int
    max_bytes: int
    digest: bool = False


@message
class Page(Message):
    """Answers ``Scan``, ``ScanKeys`` and ``Count``.

    ``done`` partitions of the list were walked to their end; ``after`` is the last key seen in
    the next one (empty when it was not begun). ``count`` is the number of live keys met.

    Where a digest was asked for, ``moment`` is the time at which records were live or expired, and
    never 0. ``digests`` has 22 bytes for each partition with a live record in the page, in order:
    its place in the list (2 bytes), the number of live records (4), and the sum, modulo 2**128, of
    XXH3-128 over storage key, checksum and version of each (16). ``corrupt`` has the places (2
    bytes each) of partitions with a damaged record in the page: its key is in ``keys`` of a
    ``ScanKeys``; it is in no value, count or digest.
    """

    KIND = 21
    done: int
    after: bytes
    count: int
    keys: Frame = EMPTY
    values: Frame = EMPTY
    digests: bytes = b""
    corrupt: bytes = b""
    moment: int = 0


@message
class StatusRequest(Message):
    """Asks a peer how it does."""

    KIND = 22


@message
class StatusReply(Message):
    """Answers ``StatusRequest``: a map of plain details."""

    KIND = 23
    status: dict[str, Any]


@message
class ScanKeys(Message):
    """Like ``Scan``, for keys alone."""

    KIND = 24
    index: str
    prefix: bytes
    partitions: bytes
    after: bytes
    max_keys: int
    max_bytes: int
    digest: bool = False


@message
class Count(Message):
    """Like ``Scan``, for the number of live keys alone; with ``digest``, also to compare replicas.

    ``until`` is the last key wanted of the last partition of the list; empty for all of it.
    ``moment`` is the time by which records are live or expired (milliseconds since 1970); 0 for
    that of the peer's clock. Both hold only together with ``digest``.
    """

    KIND = 25
    index: str
    prefix: bytes
    partitions: bytes
    after: bytes
    max_keys: int
    max_bytes: int
    digest: bool = False
    until: bytes = b""
    moment: int = 0


@message
class AdminRequest(Message):
    """An operator's order about the topology; see ``cluster/changing.py`` for the actions.

    ``dry`` asks only what would come of it. ``rate`` is in bytes a second. ``stamp`` is set by the
    peer that takes the order: the cluster's time, for ``lower-floors``.
    """

    KIND = 30
    action: str
    peers: list[str]
    rate: int = 0
    dry: bool = False
    stamp: int = rarely_set(0)


@message
class AdminReply(Message):
    """Answers ``AdminRequest``: the topology (JSON) that came, or would come, of it."""

    KIND = 31
    topology: bytes


@message
class Repair(Message):
    """Has a peer check and compare all that it holds, now; answered by ``StatusReply``."""

    KIND = 32
