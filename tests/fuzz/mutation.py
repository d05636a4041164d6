"""Nearly valid messages: valid messages with a few bytes changed."""

from __future__ import annotations

from random import Random
from typing import Final

from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import (
    AdminRequest,
    Apply,
    Count,
    Delete,
    Fetch,
    Hello,
    Lookup,
    Ping,
    Put,
    Scan,
    ScanKeys,
    StatusRequest,
    TopologyRequest,
)
from dstash.wire.packing import pack_partitions
from dstash.wire.replication import (
    BucketsRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Hint,
    Pull,
    Push,
    SeenRequest,
    SetHorizon,
    VersionsRequest,
)
from dstash.wire.shapes import Frame, Message

_KEYS: Final = Frame(codec.pack_blobs(encode_keys([f"fuzz{n}" for n in range(5)])))
_PAYLOADS: Final = Frame(codec.pack_blobs([b"\x01", b"\xa1v", b"\xc0", b"\x90", b"\xc4\x01x"]))
_EVIL: Final = (
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 64,
    b"\xc1",
    b"\xff" * 9,
)


def seeds(now: int) -> list[Message]:
    """Return one message of each kind, as peers and clients send them."""
    version = pack(stamp_at(now), bytes(12))
    some = pack_partitions([0, 1, 4095])
    span = ("fuzz", b"", some, b"", 10, 1000)
    return [
        *(Hello(), Ping(), TopologyRequest(), StatusRequest(), AdminRequest("pause", [], dry=True)),
        *(Lookup("fuzz", 3, _KEYS), Fetch("fuzz", _KEYS), Pull(_KEYS)),
        *(Put("fuzz", version, 0, _KEYS, _PAYLOADS), Delete("fuzz", version, _KEYS)),
        *(Scan(*span), ScanKeys(*span), Count(*span), Hint("fuzz", "p1", _KEYS)),
        *(
            DigestsRequest(some),
            BucketsRequest(1),
            VersionsRequest(some, b"", b""),
            CopyRequest(some, b""),
        ),
        *(
            Push(_KEYS, _PAYLOADS),
            Apply("fuzz", _KEYS, _PAYLOADS),
            SeenRequest("p1", stamp_at(now)),
        ),
        *(FloorRequest(some, stamp_at(now - 60_000)), SetHorizon(some, stamp_at(now - 60_000))),
    ]


def frames(message: Message, epoch: int) -> list[bytes]:
    """Return the correct frames of a message."""
    return encode(Envelope(1, epoch, 0, message))


def mutate(random: Random, message: Message, epoch: int, deadline: int) -> list[bytes]:
    """Return the frames of a message with up to three mutations."""
    parts = encode(Envelope(random.getrandbits(32), epoch, deadline, message))
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        place = random.randrange(len(parts))
        parts[place] = spoil(random, parts[place])
    if random.random() < 0.03:
        parts = parts[: random.randrange(1, len(parts) + 1)] * random.randrange(1, 4)
    return parts


def spoil(random: Random, part: bytes) -> bytes:
    """Return a frame with a mutation."""
    at = random.randrange(len(part) + 1)
    choice = random.randrange(5)
    if choice == 0:
        return part[:at] + bytes((random.getrandbits(8),)) + part[at + 1 :]
    if choice == 1:
        return part[:at] + part[at + random.randrange(1, 8) :]
    if choice == 2:
        return part[:at] + random.randbytes(random.randrange(1, 8)) + part[at:]
    if choice == 3:
        return part[:at] + random.choice(_EVIL) + part[at:]
    return part[:at]
