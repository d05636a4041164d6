"""The messages between peers: comparison of replicas, transfer of records, agreement on horizons.

Storage keys are partition, index and key as on disk; ``partitions`` is a sequence of
big-endian 16-bit numbers; a digest has 16 bytes.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from dstash.wire.shapes import Frame, Message, message, rarely_set


@message
class DigestsRequest(Message):
    """Requests the digest of each partition; with ``skip_busy``, not of busy partitions.

    With ``skip_all`` it requests only horizons, and which partitions have records (``counts`` are
    inexact then). Peers of earlier versions ignore the flag and compute everything.

    ``kind`` is the requested ``DigestKind``: ``VERSIONS`` or ``CONTENT``.
    """

    KIND = 40
    partitions: bytes
    skip_busy: bool = False
    skip_all: bool = False
    kind: int = 0


@message
class DigestsReply(Message):
    """Answers ``DigestsRequest``: digests in order; zero bytes if a partition is empty.

    ``busy`` has a byte per partition: 1 if the digest is omitted, because recent writes would make
    a difference meaningless; 2 if the partition has corrupt records, which the digest does not
    cover. ``counts`` has 4 bytes per partition: the number of its records. ``horizons`` has 8 bytes
    per partition: its horizon on the answering peer. ``kind`` is the ``DigestKind`` of the digests:
    a peer that does not support the requested kind answers with ``VERSIONS``.
    """

    KIND = 41
    digests: bytes
    busy: bytes
    counts: bytes
    horizons: bytes = b""
    kind: int = 0


@message
class BucketsRequest(Message):
    """Requests the digests of a partition's 256 buckets; ``kind`` as in ``DigestsRequest``."""

    KIND = 42
    partition: int
    kind: int = 0


@message
class BucketsReply(Message):
    """Answers ``BucketsRequest``: 256 digests; ``kind`` as in ``DigestsReply``."""

    KIND = 43
    digests: bytes
    kind: int = 0


@message
class VersionsRequest(Message):
    """Requests keys and versions of partitions, in ``buckets`` (one byte each; empty: in all).

    ``partitions`` ascend. ``after`` is the last storage key of the previous page; empty for the
    first page. ``checksums`` requests the checksums of the records too. ``registers`` requests
    registers only.
    """

    KIND = 44
    partitions: bytes
    buckets: bytes
    after: bytes
    checksums: bool = False
    registers: bool = rarely_set(default=False)


@message
class VersionsReply(Message):
    """Answers ``VersionsRequest`` with one page: storage keys, and a version (20 bytes) for each.

    The version of a corrupt record is all zero.

    ``after`` is the ``after`` of the next request; it is empty for the last page. ``checksums`` has
    8 bytes for each key; it is empty if they were not requested or the peer does not support them.
    """

    KIND = 45
    after: bytes
    versions: bytes
    keys: Frame
    checksums: bytes = b""


@message
class Pull(Message):
    """Requests records by storage key; answered by ``Records``."""

    KIND = 46
    keys: Frame


@message
class Push(Message):
    """Merges records under their storage keys; answered by ``Stored``.

    With ``compared`` a comparison has found these records to be missing. Without it they come from
    hints, and the receiver expects more of them soon.
    """

    KIND = 47
    keys: Frame
    records: Frame
    compared: bool = False


@message
class CopyRequest(Message):
    """Requests a page of all records of partitions, with tombstones; as ``VersionsRequest``.

    ``most_bytes`` limits the page, with some overhead per record; with 0 the peer decides.
    """

    KIND = 48
    partitions: bytes
    after: bytes
    most_bytes: int = 0


@message
class CopyReply(Message):
    """Answers ``CopyRequest``; ``after`` as in ``VersionsReply``."""

    KIND = 49
    after: bytes
    keys: Frame
    records: Frame


@message
class Hint(Message):
    """Leaves a hint on a replica: ``peer`` missed a write of these keys. Has no answer."""

    KIND = 50
    index: str
    peer: str
    keys: Frame


@message
class FloorRequest(Message):
    """Requests a floor: a promise to refuse writes stamped ``stamp`` or earlier.

    Answered by ``DigestsReply``, over the records up to the stamp. The promise applies to clients
    forever, to other peers for some seconds. ``kind`` is the requested ``DigestKind``: ``VERSIONS``
    or ``WRITES``.
    """

    KIND = 51
    partitions: bytes
    stamp: int
    kind: int = 0


@message
class SetHorizon(Message):
    """Sets a horizon: all replicas are equal up to ``stamp``, and tombstones may be dropped."""

    KIND = 52
    partitions: bytes
    stamp: int


@message
class HorizonReply(Message):
    """Answers ``SetHorizon``: the partitions that have this horizon now."""

    KIND = 53
    partitions: bytes


@message
class SeenRequest(Message):
    """Requests what a peer remembers of the sender's store, and reports how new it is.

    ``high_water`` is that of the sender's store; 0 reports nothing. ``store_id`` names that store,
    ``life`` and ``began`` its current life. With ``wants_others`` the answer includes every store
    that the peer remembers.
    """

    KIND = 54
    peer: str
    high_water: int
    store_id: str = ""
    life: int = 0
    began: int = 0
    wants_others: bool = False


@message
class SeenReply(Message):
    """Answers ``SeenRequest``: the high water remembered (0 for none), and the peer's own.

    ``store_id``, ``life`` and ``began`` name the answering store and its life; the id is empty
    if the peer has an earlier version. ``seen_lives`` lists the remembered lives of the sender's
    store as ``[life, began, stamp]``; ``others`` those of all stores, each with its store id first.
    """

    KIND = 55
    seen: int
    high_water: int
    store_id: str = ""
    life: int = 0
    began: int = 0
    seen_lives: list[list[Any]] = field(default_factory=list)
    others: list[list[Any]] = field(default_factory=list)


@message
class ReleaseFloor(Message):
    """Withdraws the floors at exactly ``stamp``: the replicas did not agree on it.

    They can be repaired without waiting for the floors to expire. Answered by ``FloorReleased``,
    for which the sender does not wait.
    """

    KIND = 56
    partitions: bytes
    stamp: int


@message
class FloorReleased(Message):
    """Answers ``ReleaseFloor``: the partitions that had such a floor."""

    KIND = 57
    partitions: bytes


@message
class ClockRequest(Message):
    """Requests a peer's clock, and the newest stamp in its store or its floors."""

    KIND = 58


@message
class ClockReply(Message):
    """Answers ``ClockRequest``.

    ``clock`` is the peer's own clock (milliseconds since 1970). ``present`` is the highest stamp in
    its store or its floors. A stamp that a majority of members report is accepted although it is
    ahead of every clock.
    """

    KIND = 59
    clock: int
    present: int


@message
class HistoryRequest(Message):
    """Requests the load of the last minutes after a time (milliseconds since 1970)."""

    KIND = 60
    after: int = 0


@message
class HistoryReply(Message):
    """Answers ``HistoryRequest``: one sample per second, oldest first.

    A sample has 40 bytes, all big-endian: its end (milliseconds since 1970, 8 bytes), then 4 bytes
    each for requests read and written, keys read and written, and the 50th and 99th percentile of
    handling a message and of a commit (microseconds).
    """

    KIND = 61
    samples: bytes
