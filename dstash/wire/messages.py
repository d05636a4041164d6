"""The messages between clients and peers.

``docs/protocol.md`` describes them, and those between peers (``replication.py``), for clients in
other languages. ``envelope.py`` encodes them as frames.
"""

from __future__ import annotations

from dataclasses import field
from enum import IntFlag
from typing import Any

from dstash.errors import DStashError, from_wire
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL
from dstash.wire.shapes import EMPTY, Frame, Message, message, rarely_set


class Want(IntFlag):
    """What a ``Lookup`` requests. The reply always lists the missing keys.

    With ``CONTENT`` the digest covers checksums too. It requires protocol version 2, so a client
    sets it only if every peer that it compares supports that version.
    """

    VALUES = 1
    DIGEST = 2
    CONTENT = 4


@message
class Hello(Message):
    """The first message on a connection.

    ``seen`` lists the stores that a client has seen: ``[store id, life, begin, stamp]`` for each
    life of a store, with the newest stamp that its peer acked. See
    ``cluster/replication/lineage.py``.
    """

    KIND = 1
    cluster: str = ""
    lowest: int = LOWEST_PROTOCOL
    highest: int = HIGHEST_PROTOCOL
    sender: str = ""
    seen: list[list[Any]] = rarely_set([])


@message
class Welcome(Message):
    """Answers ``Hello``: the peer, its protocol versions, and the state of the cluster.

    ``store`` is ``[store id, life, begin, stamp]`` of the peer's store. The stamp is 0 until the
    peer has checked that its store was not rolled back.

    ``place`` is where clients on the machine of the peer may read its store themselves:
    ``[boot id, machine id, directory, store id]``. It is empty unless the peer shares its store.
    """

    KIND = 2
    cluster: str
    peer: str
    lowest: int
    highest: int
    limits: dict[str, int]
    topology: bytes
    alive: list[str]
    store: list[Any] = field(default_factory=list)
    place: list[Any] = rarely_set([])


@message
class Error(Message):
    """Refuses a whole request."""

    KIND = 3
    code: int
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: DStashError) -> Error:
        """Return the wire form of an error."""
        return cls(error.code, str(error), error.details)

    def error(self) -> DStashError:
        """Return the error that the message describes."""
        details = {name: value for name, value in self.details.items() if isinstance(name, str)}
        details.pop("message", None)
        return from_wire(self.code, self.text, details)


@message
class Ping(Message):
    """Requests a ``Pong``, with the peer's clock and epoch."""

    KIND = 4


@message
class Pong(Message):
    """Answers ``Ping``."""

    KIND = 5


@message
class TopologyRequest(Message):
    """Requests the topology and the live peers."""

    KIND = 6


@message
class TopologyReply(Message):
    """Answers ``TopologyRequest``: the peer's topology as JSON, and the ids of the live peers.

    ``is_kept`` says whether the peer has the topology on its disk; peers of an earlier version do
    not send it.
    """

    KIND = 7
    topology: bytes
    alive: list[str]
    is_kept: bool = rarely_set(True)


@message
class Lookup(Message):
    """Requests values by key, or a digest over their versions, or both."""

    KIND = 10
    index: str
    want: int
    keys: Frame


@message
class Values(Message):
    """Answers ``Lookup``.

    ``answered`` is the number of keys that were looked up: fewer than requested if the reply would
    have become too large. ``values`` is one msgpack array with the values in the order of the keys,
    nil for a missing key; ``missing`` lists their positions (a stored nil is not missing).
    ``corrupt`` lists the positions of records that failed their checksums. ``digest`` covers the
    versions of the keys, or checksums and versions if the request has ``CONTENT``. A tombstone or
    expired record below the horizon of its partition counts as absent in it.
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

    ``replaces`` lists earlier versions of the same write, 20 bytes each, that were refused because
    they were ahead of the clock. A stored record with such a version is replaced, although higher.
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
    """Answers ``Put``, ``Delete`` and ``Apply`` once everything is on disk.

    ``rejected`` has ``[position, code, detail]`` for each key that was not stored: code 0 with the
    stored version if that is higher (superseded), else an error code with its text. ``existed``
    has a byte per key of a ``Delete``: 1 if a live record was stored before. ``unsure`` has a byte
    per key too, or is empty: 1 if it is not known, because the record was corrupt, because a later
    put of the same client has reached the replica first, or because the replica is streamed the
    data that it has lost.
    """

    KIND = 15
    rejected: list[list[Any]]
    existed: bytes = b""
    unsure: bytes = rarely_set(b"")


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
    """Requests whole records: version, flags, expiry, checksum and payload."""

    KIND = 17
    index: str
    keys: Frame


@message
class Records(Message):
    """Answers ``Fetch``: an array of records, nil for a missing or corrupt record.

    A tombstone or expired record below the horizon of its partition counts as missing.
    """

    KIND = 18
    corrupt: list[int]
    records: Frame


@message
class Apply(Message):
    """Stores whole records with their versions (read repair, touch).

    ``is_touch``: the client has touched them, so settings of the index apply, for any stamps.
    """

    KIND = 19
    index: str
    keys: Frame
    records: Frame
    is_touch: bool = rarely_set(default=False)


@message
class Scan(Message):
    """Requests one page of an index, from ``partitions`` in the given order.

    ``partitions`` is a sequence of big-endian 16-bit numbers. ``after`` is the last key of the
    previous page, in the first partition of the list; empty for the first page.

    With ``digest`` the page also has the digest of each partition with records in it, and a corrupt
    record does not end the page. Peers of earlier versions ignore it.
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

    ``done`` is the number of partitions that were read completely. ``after`` is the last key read
    in the next one, empty if it was not begun. ``count`` is the number of live keys.

    If a digest was requested, ``moment`` is the time that decided which records were live; it is
    never 0. ``digests`` has 22 bytes for each partition with a live record in the page, in order:
    its position in the list (2 bytes), the number of live records (4), and the sum, modulo 2**128,
    of XXH3-128 over storage key, checksum and version of each (16). ``corrupt`` has the positions
    (2 bytes each) of partitions with a corrupt record in the page: its key is in ``keys`` of a
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
    """Requests the status of a peer."""

    KIND = 22


@message
class StatusReply(Message):
    """Answers ``StatusRequest``: a map of plain values."""

    KIND = 23
    status: dict[str, Any]


@message
class ScanKeys(Message):
    """Like ``Scan``, but without values."""

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
    """Like ``Scan``, but only for the number of live keys; with ``digest``, also for comparison.

    ``until`` is the last key to count in the last partition of the list; empty for all of it.
    ``moment`` is the time that decides which records are live (milliseconds since 1970); 0 for the
    peer's clock. Both apply only together with ``digest``.
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
    """Changes the topology for an operator; ``peer/membership_agent.py`` has the actions.

    With ``dry`` the peer only computes the result. ``rate`` is in bytes per second. The peer that
    accepts the request sets ``stamp`` to the cluster clock, for ``lower-floors``.
    """

    KIND = 30
    action: str
    peers: list[str]
    rate: int = 0
    dry: bool = False
    stamp: int = rarely_set(0)


@message
class AdminReply(Message):
    """Answers ``AdminRequest``: the resulting topology, as JSON."""

    KIND = 31
    topology: bytes


@message
class Repair(Message):
    """Starts a full repair of a peer; answered by ``StatusReply``."""

    KIND = 32


@message
class Compact(Message):
    """Starts a compaction of the store of a peer; answered by ``StatusReply``."""

    KIND = 37


@message
class IndexesRequest(Message):
    """Requests the names and sizes of the indexes in ``partitions``.

    ``partitions`` is a sequence of big-endian 16-bit numbers.
    """

    KIND = 33
    partitions: bytes


@message
class IndexesReply(Message):
    """Answers ``IndexesRequest``.

    Of the ``partitions`` that were requested, records were counted in ``counted`` only. ``indexes``
    has ``[name, records, bytes, partitions]`` for each index, at most 10,000: the live records and
    their bytes in the partitions that were counted, and the number of all partitions with a record.
    """

    KIND = 34
    partitions: int
    counted: int
    indexes: list[list[Any]]


@message
class DropRequest(Message):
    """Drops an index, or the keys of it that begin with ``prefix``, by an entry of the topology.

    ``stamp`` is the clock of the client. The peer that accepts the request replaces it by a stamp
    above which no write quorum holds a record. Answered by ``AdminReply``.
    """

    KIND = 35
    index: str
    prefix: bytes
    stamp: int


@message
class IndexSettingsRequest(Message):
    """Changes the settings of an index, by an entry of the topology.

    ``settings`` has milliseconds by name (``ttl``, ``max_ttl``), 0 to remove a setting; those that
    it does not name stay. The peer that accepts the request sets ``stamp``. Answered by
    ``AdminReply``.
    """

    KIND = 36
    index: str
    settings: dict[str, int]
    stamp: int = 0
