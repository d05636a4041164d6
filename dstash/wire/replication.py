"""The messages between peers: comparing replicas, moving records, agreeing on horizons.

Storage keys are partition, index and key as they stand on disk; ``partitions`` is a sequence of
big-endian 16-bit numbers; a digest has 16 bytes.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from dstash.wire.shapes import Frame, Message, message


@message
class DigestsRequest(Message):
    """Asks for the digest of each partition; with ``skip_busy``, not of those that are busy.

    With ``skip_all`` only horizons are wanted, and which partitions hold anything (``counts`` are
    not exact then). A peer that does not know of it works everything out.

    ``kind`` is the wanted ``DigestKind``: ``VERSIONS`` or ``CONTENT``.
    """

    KIND = 40
    partitions: bytes
    skip_busy: bool = False
    skip_all: bool = False
    kind: int = 0


@message
class DigestsReply(Message):
    """Answers ``DigestsRequest``: a digest per partition, in order; all zero for an empty one.

    ``busy`` has a byte per partition: 1 where the digest was left out, because writes came in
    during the last moments and a difference would mean little; 2 where damaged records are, which
    the digest leaves out. ``counts`` has 4 bytes per
    partition: how many records it holds. ``horizons`` has 8 bytes per partition: the stamp up to
    which the answering peer holds the whole truth. ``kind`` is the ``DigestKind`` of the digests: a
    peer that does not know the wanted kind answers with ``VERSIONS``.
    """

    KIND = 41
    digests: bytes
    busy: bytes
    counts: bytes
    horizons: bytes = b""
    kind: int = 0


@message
class BucketsRequest(Message):
    """Ask for the digests of a partition's 256 buckets; ``kind`` as in ``DigestsRequest``."""

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
    """Asks for keys and versions of partitions, in ``buckets`` (one byte each; empty: in all).

    ``partitions`` ascend. ``after`` is the last storage key of the page before; empty to begin.
    ``checksums`` asks for the checksums of the records too.
    """

    KIND = 44
    partitions: bytes
    buckets: bytes
    after: bytes
    checksums: bool = False


@message
class VersionsReply(Message):
    """Answers ``VersionsRequest`` with one page: storage keys, and a version (20 bytes) for each.

    The version of a damaged record is all zero.

    ``after`` is to be given for the next page; it is empty when this was the last one.
    ``checksums`` has 8 bytes for each key, if they were asked for; it is empty if they were not, or
    if the answering peer does not know of them.
    """

    KIND = 45
    after: bytes
    versions: bytes
    keys: Frame
    checksums: bytes = b""


@message
class Pull(Message):
    """Asks for records by storage key; answered by ``Records``."""

    KIND = 46
    keys: Frame


@message
class Push(Message):
    """Merges records under their storage keys; answered by ``Stored``.

    ``compared``: a comparison found these records to be missing. Without it they come from hints,
    and the receiver expects more of them soon.
    """

    KIND = 47
    keys: Frame
    records: Frame
    compared: bool = False


@message
class CopyRequest(Message):
    """Asks for a page of partitions: all records, tombstones too. Fields as in ``VersionsRequest``.

    ``most_bytes`` is what the page should weigh at most, where a record weighs some more than its
    bytes; with 0 the peer decides.
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
    """Tells a replica that ``peer`` missed a write of these keys. Has no answer."""

    KIND = 50
    index: str
    peer: str
    keys: Frame


@message
class FloorRequest(Message):
    """Asks for a promise: refuse all that is stamped ``stamp`` or before, and say what is there.

    Answered by ``DigestsReply``, over the records up to the stamp. The promise holds against
    clients for ever, against other peers for some seconds. ``kind`` is the wanted ``DigestKind``:
    ``VERSIONS`` or ``WRITES``.
    """

    KIND = 51
    partitions: bytes
    stamp: int
    kind: int = 0


@message
class SetHorizon(Message):
    """Says that all replicas hold the same records up to ``stamp``: the dead may leave the disk."""

    KIND = 52
    partitions: bytes
    stamp: int


@message
class HorizonReply(Message):
    """Answers ``SetHorizon``: the partitions whose horizon now stands there."""

    KIND = 53
    partitions: bytes


@message
class SeenRequest(Message):
    """Asks what the other remembers of this peer's store, and tells how new that is.

    ``high_water`` is the newest stamp of the asking peer's store; 0 to tell nothing. ``store_id``
    names that store; ``life`` and ``began`` its current life. With ``wants_others`` the answer
    holds what the other remembers of every store.
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
    """Answer to ``SeenRequest``: the newest stamp remembered (0 for none) and the store's own.

    ``store_id``, ``life`` and ``began`` name the answering store and its life; the id is empty
    where an earlier version answers. ``seen_lives`` lists what is remembered of the asking store,
    ``[life, began, stamp]`` each; ``others`` likewise of all stores, a store id before each.
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
    """Takes back the promises for exactly ``stamp``: replicas did not agree on it.

    They need not wait then until the promise expires, to be repaired. Answered by
    ``FloorReleased``; the sender does not wait for that.
    """

    KIND = 56
    partitions: bytes
    stamp: int


@message
class FloorReleased(Message):
    """Answers ``ReleaseFloor``: the partitions that had such a promise."""

    KIND = 57
    partitions: bytes


@message
class ClockRequest(Message):
    """Asks a peer for its clock, and for the newest stamp that it holds or has promised."""

    KIND = 58


@message
class ClockReply(Message):
    """Answers ``ClockRequest``.

    ``clock`` is the peer's own clock (milliseconds since 1970). ``present`` is a stamp: the highest
    of those that its store holds and of those that it promised to refuse. A stamp that a majority
    of members have so is accepted although it is ahead of every clock.
    """

    KIND = 59
    clock: int
    present: int


@message
class HistoryRequest(Message):
    """Asks for the load of the last minutes, as far as it is newer than a moment (milliseconds)."""

    KIND = 60
    after: int = 0


@message
class HistoryReply(Message):
    """Answers ``HistoryRequest``: a sample a second, oldest first.

    A sample has 40 bytes, all big-endian: its end (milliseconds since 1970, 8 bytes), then 4 bytes
    each for requests read and written, keys read and written, and the 50th and 99th percentile of
    handling a message and of a commit (microseconds).
    """

    KIND = 61
    samples: bytes
