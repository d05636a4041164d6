"""The messages by which a peer proposes new versions of registers to the replicas of their keys.

``docs/atomic.md`` has the protocol.

Keys are storage keys, as in ``wire/replication.py``. A verdict is a number of
``dstash.store.register.voter.Verdict``.
"""

from __future__ import annotations

from dstash.wire.shapes import Frame, Message, message, rarely_set


@message
class Prepare(Message):
    """Requests the promise of a round for registers; answered by ``Promised``.

    ``round`` is in milliseconds; 0 only requests what is held, and promises nothing. ``writer`` is
    the number of the proposing process (4 bytes). ``known`` has 20 bytes for each key: the version
    that the proposer has, whose record need not be sent; empty if it has none. ``is_needed``: no
    quorum exists without voters that have promised a round just below this one, so it may be ahead
    of the clocks.
    """

    KIND = 62
    round: int
    writer: bytes
    known: bytes
    keys: Frame
    is_needed: bool = rarely_set(default=False)


@message
class Promised(Message):
    """Answers ``Prepare``, for each key in order.

    ``verdicts`` has a byte for each key. ``held`` has 20 bytes for each key: the version of its
    record, all zero without one. ``past`` has 8 bytes for each key: the round (milliseconds) that
    the next attempt must exceed. ``horizons`` has 8 bytes for each key: the horizon of its
    partition. ``records`` has the record of each key if it is above the known version, else nil;
    nil, too, for a record that does not fit into 4 MiB together with those before it.
    ``high_water`` is that of the voter's store, in its present ``life``, which began at
    ``began`` (milliseconds since 1970).
    """

    KIND = 63
    verdicts: bytes
    held: bytes
    past: bytes
    horizons: bytes
    high_water: int
    life: int
    began: int
    records: Frame


@message
class Accept(Message):
    """Requests that registers are taken; answered by ``Accepted``.

    The versions are in the records.
    """

    KIND = 64
    keys: Frame
    records: Frame


@message
class Accepted(Message):
    """Answers ``Accept``, for each key in order; the fields are as in ``Promised``."""

    KIND = 65
    verdicts: bytes
    past: bytes
    high_water: int
    life: int
    began: int


@message
class PromisesRequest(Message):
    """Requests the open promises in some partitions (ascending); answered by ``PromisesReply``.

    ``partitions`` is a sequence of big-endian 16-bit numbers. ``after`` is the last key of the
    previous page, empty for the first.
    """

    KIND = 66
    partitions: bytes
    after: bytes


@message
class PromisesReply(Message):
    """Answers ``PromisesRequest``: keys, and the promised round of each (8 bytes).

    ``after`` is the last key if there may be more, else empty. ``floors`` has a stamp for each
    requested partition (8 bytes): the highest horizon that it has had; only on the first page.
    """

    KIND = 67
    after: bytes
    rounds: bytes
    keys: Frame
    floors: bytes = rarely_set(b"")


@message
class RegisterFloorsRequest(Message):
    """Requests the highest horizon that each of some partitions has had.

    A peer sends it before it lowers its horizons. A peer that has to lower its own withdraws its
    promises before it answers. ``partitions`` is a sequence of big-endian 16-bit
    numbers.
    """

    KIND = 68
    partitions: bytes


@message
class RegisterFloorsReply(Message):
    """Answers ``RegisterFloorsRequest``: a stamp for each partition (8 bytes)."""

    KIND = 69
    floors: bytes
