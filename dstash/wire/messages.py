"""Every message that peers and clients exchange.

A message is ZeroMQ frames ``[header][body...]``. The header is a msgpack array::

    [protocol, kind, correlation, epoch, moment, field, field, ...]

``moment`` is the deadline in a request (milliseconds since 1970 on the receiving peer's clock,
0 for none) and the peer's clock in a reply. The remaining fields are those of the message class,
in order; a receiver ignores fields it does not know and fills in defaults for those it misses, so
fields are append-only, like kinds. Fields of type ``Frame`` travel as frames of their own, after
the header, because they are large and opaque: packed once, sent to several replicas.

``docs/protocol.md`` describes them for other languages.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from enum import IntFlag
from typing import Any, ClassVar, Final, NamedTuple, NewType, TypeVar

from dstash.errors import DStashError, ProtocolError, VersionMismatch, from_wire
from dstash.limits import MAX_FRAME_BYTES, MAX_FRAME_PARTS
from dstash.wire import codec

#: The lowest and highest protocol version this code speaks. A connection begins under the lowest;
#: once both sides have said what they speak (``Hello``, ``Welcome``), requests on it go under the
#: highest that both do, and a reply goes under the version of its request.
LOWEST_PROTOCOL: Final = 1
HIGHEST_PROTOCOL: Final = 1

#: A body frame: a packed msgpack array, opaque until somebody needs it.
Frame = NewType("Frame", bytes)

EMPTY: Final = Frame(b"\x90")

_MAX_WORD: Final = (1 << 64) - 1


class Want(IntFlag):
    """What a ``Lookup`` asks for. Which keys are missing is always answered."""

    VALUES = 1
    DIGEST = 2


class Message:
    """Base of all messages; subclasses are frozen dataclasses with a ``KIND``."""

    KIND: ClassVar[int]
    __slots__ = ()


_M = TypeVar("_M", bound=Message)


class _Shape(NamedTuple):
    """How one message class travels."""

    build: type[Message]
    plain: tuple[tuple[str, tuple[type, ...], Any], ...]
    frames: tuple[str, ...]
    plain_of: Callable[[Message], tuple[Any, ...]]
    frames_of: Callable[[Message], tuple[Frame, ...]]


def _getter(names: tuple[str, ...]) -> Callable[[Message], tuple[Any, ...]]:
    """Return a function that reads those attributes, at the speed of C where there are some."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda message: tuple([getattr(message, name) for name in names])


def _accepted(hint: Any) -> tuple[type, ...]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return tuple(kind for part in typing.get_args(hint) for kind in _accepted(part))
    return (origin or hint,)


def _default(one: Any) -> Any:
    if one.default is not MISSING:
        return one.default
    return one.default_factory() if one.default_factory is not MISSING else MISSING


def _shape(cls: Any) -> _Shape:
    hints = typing.get_type_hints(cls)
    plain = tuple(
        (one.name, _accepted(hints[one.name]), _default(one))
        for one in fields(cls)
        if hints[one.name] is not Frame
    )
    frames = tuple(one.name for one in fields(cls) if hints[one.name] is Frame)
    return _Shape(cls, plain, frames, _getter(tuple(one[0] for one in plain)), _getter(frames))


_SHAPES: dict[int, _Shape] = {}


@typing.dataclass_transform(frozen_default=True)
def message(cls: type[_M]) -> type[_M]:
    """Make a class a frozen dataclass known to ``encode`` and ``decode``; its kind must be free."""
    made = dataclass(frozen=True, slots=True)(cls)
    if made.KIND in _SHAPES:
        raise AssertionError(f"kind {made.KIND} is taken by {_SHAPES[made.KIND].build.__name__}")
    _SHAPES[made.KIND] = _shape(made)
    return made


@message
class Hello(Message):
    """The first message on a connection."""

    KIND = 1
    cluster: str = ""
    lowest: int = LOWEST_PROTOCOL
    highest: int = HIGHEST_PROTOCOL
    sender: str = ""


@message
class Welcome(Message):
    """Answers ``Hello``: who the peer is, what it speaks, how the cluster looks."""

    KIND = 2
    cluster: str
    peer: str
    lowest: int
    highest: int
    limits: dict[str, int]
    topology: bytes
    alive: list[str]


@message
class Error(Message):
    """A request was refused as a whole."""

    KIND = 3
    code: int
    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: DStashError) -> Error:
        """Return the wire form of an error."""
        return cls(error.code, str(error), error.facts)

    def error(self) -> DStashError:
        """Return the error that the other side meant."""
        facts = {name: fact for name, fact in self.facts.items() if isinstance(name, str)}
        facts.pop("message", None)
        return from_wire(self.code, self.text, facts)


@message
class Ping(Message):
    """Asks for a ``Pong``: the peer's clock and epoch."""

    KIND = 4


@message
class Pong(Message):
    """Answers ``Ping``."""

    KIND = 5


@message
class AskTopology(Message):
    """Asks for the topology and for who is alive."""

    KIND = 6


@message
class TopologyIs(Message):
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
    there is none; ``missing`` lists those positions (a stored nil is not missing). ``damaged``
    lists positions whose record failed its checksum. ``digest`` covers the versions of the keys.
    """

    KIND = 11
    answered: int
    digest: bytes
    missing: list[int]
    damaged: list[int]
    values: Frame


@message
class Put(Message):
    """Stores values under one version and one expiry (ms since 1970, 0 = never)."""

    KIND = 14
    index: str
    version: bytes
    expiry: int
    keys: Frame
    payloads: Frame


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
    """Writes tombstones under one version."""

    KIND = 16
    index: str
    version: bytes
    keys: Frame


@message
class Fetch(Message):
    """Asks for whole records: version, flags, expiry, checksum and payload."""

    KIND = 17
    index: str
    keys: Frame


@message
class Records(Message):
    """Answers ``Fetch``: an array of records, nil where there is none or it is damaged."""

    KIND = 18
    damaged: list[int]
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
    """

    KIND = 20
    index: str
    prefix: bytes
    partitions: bytes
    after: bytes
    max_keys: int
    max_bytes: int


@message
class Page(Message):
    """Answers ``Scan``, ``ScanKeys`` and ``Count``.

    ``done`` partitions of the list were walked to their end; ``after`` is the last key seen in
    the next one (empty when it was not begun). ``count`` is the number of live keys met.
    """

    KIND = 21
    done: int
    after: bytes
    count: int
    keys: Frame = EMPTY
    values: Frame = EMPTY


@message
class AskStatus(Message):
    """Asks a peer how it does."""

    KIND = 22


@message
class StatusIs(Message):
    """Answers ``AskStatus``: a map of plain facts."""

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


@message
class Count(Message):
    """Like ``Scan``, for the number of live keys alone."""

    KIND = 25
    index: str
    prefix: bytes
    partitions: bytes
    after: bytes
    max_keys: int
    max_bytes: int


@message
class Order(Message):
    """An operator's order about the topology; see ``cluster/changing.py`` for the actions.

    ``dry`` asks only what would come of it. ``rate`` is in bytes a second.
    """

    KIND = 30
    action: str
    peers: list[str]
    rate: int = 0
    dry: bool = False


@message
class Ordered(Message):
    """Answers ``Order``: the topology (JSON) that came, or would come, of it."""

    KIND = 31
    topology: bytes


@message
class Repair(Message):
    """Has a peer check and compare all that it holds, now; answered by ``StatusIs``."""

    KIND = 32


# Between peers. Storage keys are partition, index and key as they stand on disk; ``partitions`` is
# a sequence of big-endian 16-bit numbers; a digest has 16 bytes.


@message
class AskDigests(Message):
    """Asks for the digest of each partition; with ``skip_busy``, not of those that are busy."""

    KIND = 40
    partitions: bytes
    skip_busy: bool = False


@message
class DigestsAre(Message):
    """Answers ``AskDigests``: a digest per partition, in order; all zero for an empty one.

    ``busy`` has a byte per partition: 1 where the digest was left out, because writes came in
    during the last moments and a difference would mean little; 2 where damaged records are, which
    the digest leaves out. ``counts`` has 4 bytes per
    partition: how many records it holds. ``horizons`` has 8 bytes per partition: the stamp up to
    which the answering peer holds the whole truth.
    """

    KIND = 41
    digests: bytes
    busy: bytes
    counts: bytes
    horizons: bytes = b""


@message
class AskBuckets(Message):
    """Asks for the digests of the 256 buckets of one partition."""

    KIND = 42
    partition: int


@message
class BucketsAre(Message):
    """Answers ``AskBuckets``: 256 digests."""

    KIND = 43
    digests: bytes


@message
class AskVersions(Message):
    """Asks for keys and versions of partitions, in ``buckets`` (one byte each; empty: in all).

    ``partitions`` ascend. ``after`` is the last storage key of the page before; empty to begin.
    """

    KIND = 44
    partitions: bytes
    buckets: bytes
    after: bytes


@message
class VersionsAre(Message):
    """Answers ``AskVersions`` with one page: storage keys, and a version (20 bytes) for each.

    The version of a damaged record is all zero.

    ``after`` is to be given for the next page; it is empty when this was the last one.
    """

    KIND = 45
    after: bytes
    versions: bytes
    keys: Frame


@message
class Pull(Message):
    """Asks for records by storage key; answered by ``Records``."""

    KIND = 46
    keys: Frame


@message
class Push(Message):
    """Merges records under their storage keys; answered by ``Stored``."""

    KIND = 47
    keys: Frame
    records: Frame


@message
class AskCopy(Message):
    """Asks for a page of partitions: all records, tombstones too. Fields as in ``AskVersions``."""

    KIND = 48
    partitions: bytes
    after: bytes


@message
class CopyIs(Message):
    """Answers ``AskCopy``; ``after`` as in ``VersionsAre``."""

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
class AskFloor(Message):
    """Asks for a promise: refuse all that is stamped ``stamp`` or before, and say what is there.

    Answered by ``DigestsAre``, over the records up to the stamp. The promise holds against
    clients for ever, against other peers for some seconds.
    """

    KIND = 51
    partitions: bytes
    stamp: int


@message
class SetHorizon(Message):
    """Says that all replicas hold the same records up to ``stamp``: the dead may leave the disk."""

    KIND = 52
    partitions: bytes
    stamp: int


@message
class HorizonIs(Message):
    """Answers ``SetHorizon``: the partitions whose horizon now stands there."""

    KIND = 53
    partitions: bytes


@message
class AskSeen(Message):
    """Asks what the newest stamp is that the other saw of this peer's store, before it serves.

    ``high_water`` is what the asking peer's store says itself.
    """

    KIND = 54
    peer: str
    high_water: int


@message
class SeenIs(Message):
    """Answers ``AskSeen``: the stamp (0 for none), and the answering store's own."""

    KIND = 55
    seen: int
    high_water: int


@message
class AskHistory(Message):
    """Asks for the load of the last minutes, as far as it is newer than a moment (milliseconds)."""

    KIND = 60
    after: int = 0


@message
class HistoryIs(Message):
    """Answers ``AskHistory``: a sample a second, oldest first.

    A sample has 40 bytes, all big-endian: its end (milliseconds since 1970, 8 bytes), then 4 bytes
    each for requests read and written, keys read and written, and the 50th and 99th percentile of
    handling a message and of a commit (microseconds).
    """

    KIND = 61
    samples: bytes


class Envelope(NamedTuple):
    """A message with what surrounds it."""

    correlation: int
    epoch: int
    moment: int
    message: Message
    protocol: int = LOWEST_PROTOCOL


#: How sides meet that may have no version in common: read whatever version they came under.
_MEETING: Final = frozenset({Hello.KIND, Welcome.KIND, Error.KIND})


def common_protocol(lowest: object, highest: object) -> int | None:
    """Return the highest version that this side and one that speaks those have in common."""
    if not isinstance(lowest, int) or not isinstance(highest, int):
        return None
    shared = min(highest, HIGHEST_PROTOCOL)
    return shared if shared >= max(lowest, LOWEST_PROTOCOL) else None


def mismatch(theirs: str, **facts: Any) -> VersionMismatch:
    """Return the error that says which versions are spoken here, and what came instead."""
    spoken = f"{LOWEST_PROTOCOL} to {HIGHEST_PROTOCOL}"
    facts |= {"lowest": LOWEST_PROTOCOL, "highest": HIGHEST_PROTOCOL}
    return VersionMismatch(f"protocol version {theirs}; this side speaks {spoken}", **facts)


def encode(envelope: Envelope) -> list[bytes]:
    """Return the frames of a message."""
    correlation, epoch, moment, message, protocol = envelope
    shape = _SHAPES[message.KIND]
    header = (protocol, message.KIND, correlation, epoch, moment, *shape.plain_of(message))
    return [codec.pack_header(header), *shape.frames_of(message)]


def decode(parts: list[bytes]) -> Envelope:
    """Rebuild a message from its frames.

    Raises:
        VersionMismatch: a protocol version this code does not speak.
        ProtocolError: anything else that is wrong with the frames.
    """
    header = _read_header(parts)
    protocol, kind, correlation, epoch, moment, *given = header
    shape = _SHAPES.get(kind)
    if shape is None:
        raise ProtocolError(f"unknown message kind {kind}", correlation=correlation)
    if len(parts) - 1 < len(shape.frames):
        raise ProtocolError(
            f"{shape.build.__name__} has {len(parts) - 1} body frames, needs {len(shape.frames)}",
            correlation=correlation,
        )
    values = _read_fields(shape, given, correlation)
    values.update(zip(shape.frames, parts[1:], strict=False))
    return Envelope(correlation, epoch, moment, shape.build(**values), protocol)


def _read_header(parts: list[bytes]) -> list[Any]:
    if not 1 <= len(parts) <= MAX_FRAME_PARTS:
        raise ProtocolError(f"message of {len(parts)} frames; allowed are 1 to {MAX_FRAME_PARTS}")
    if sum(map(len, parts)) > MAX_FRAME_BYTES:
        raise ProtocolError(f"message is larger than {MAX_FRAME_BYTES} bytes")
    header = codec.unpack_header(parts[0])
    if len(header) < 5 or not all(map(_is_word, header[:5])):
        raise ProtocolError("header does not begin with five unsigned integers")
    is_spoken = LOWEST_PROTOCOL <= header[0] <= HIGHEST_PROTOCOL
    if not is_spoken and header[1] not in _MEETING:
        raise mismatch(str(header[0]), correlation=header[2])
    return header


def _read_fields(shape: _Shape, given: list[Any], correlation: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for place, (name, accepted, default) in enumerate(shape.plain):
        value = given[place] if place < len(given) else default
        if type(value) not in accepted or (type(value) is int and not _is_word(value)):
            raise ProtocolError(
                f"{shape.build.__name__}.{name} is missing or of the wrong type",
                correlation=correlation,
            )
        values[name] = value
    return values


def _is_word(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_WORD
