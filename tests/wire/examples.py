"""Examples of each kind of message, which ``docs/protocol.md`` shows in bytes.

Run as a module, it prints the blocks of the document:
``python -m tests.wire.examples``.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from xxhash import xxh3_128_digest

from dstash.peer.telemetry.history import Sample, pack_samples
from dstash.store.digest import DIGEST_BYTES
from dstash.store.record import Record, build_record
from dstash.store.register.header import Header, pack_header
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import (
    AdminReply,
    AdminRequest,
    Apply,
    Compact,
    Count,
    Delete,
    DropRequest,
    Error,
    Fetch,
    Hello,
    IndexesReply,
    IndexesRequest,
    IndexSettingsRequest,
    Lookup,
    Page,
    Ping,
    Pong,
    Put,
    Records,
    Repair,
    Scan,
    ScanKeys,
    StatusReply,
    StatusRequest,
    Stored,
    TopologyReply,
    TopologyRequest,
    Values,
    Want,
    Welcome,
)
from dstash.wire.registers import (
    KEEP,
    Amounts,
    Change,
    Changed,
    ChangeKind,
    ChangeOutcome,
    Settle,
    pack_amounts,
    pack_numbers,
)
from dstash.wire.registers.consensus import (
    Accept,
    Accepted,
    Prepare,
    Promised,
    PromisesReply,
    PromisesRequest,
    RegisterFloorsReply,
    RegisterFloorsRequest,
)
from dstash.wire.replication import (
    BucketsReply,
    BucketsRequest,
    ClockReply,
    ClockRequest,
    CopyReply,
    CopyRequest,
    DigestsReply,
    DigestsRequest,
    FloorReleased,
    FloorRequest,
    Hint,
    HistoryReply,
    HistoryRequest,
    HorizonReply,
    Pull,
    Push,
    ReleaseFloor,
    SeenReply,
    SeenRequest,
    SetHorizon,
    VersionsReply,
    VersionsRequest,
)
from dstash.wire.shapes import Frame, Message

#: 2023-11-14 22:13:20 UTC, in milliseconds.
NOW = 1_700_000_000_000
EPOCH = 3
SEEN = [[2, NOW - 90_000, stamp_at(NOW)]]
OTHERS = [["store1", *SEEN[0]]]
VERSION = pack(stamp_at(NOW, 1), b"\xde\xad\xbe\xef")
KEYS = Frame(codec.pack_blobs([b"key", b"no"]))
ONE_KEY = Frame(codec.pack_blobs([b"key"]))
VALUE = b"\xa5value"
RECORD = build_record(b"index", b"key", Record(VERSION, 0, 0, VALUE))
STORAGE_KEY = b"\x05\xe3\x05indexkey"
PARTITIONS = bytes.fromhex("05e3")
#: The same key and value as a register, in index ``@index``.
REGISTER_KEY = b"\x05\xe3\x06@indexkey"
REGISTER = build_record(
    b"@index",
    b"key",
    Record(VERSION, RecordFlag.REGISTER, 0, pack_header(Header(stamp_at(NOW, 1))) + VALUE),
)
#: Digests of a page whose only live record is ``RECORD``, in the first partition of the list.
RANGE_DIGEST = bytes.fromhex("000000000001") + xxh3_128_digest(STORAGE_KEY + RECORD[:28])
TOPOLOGY = json.dumps({"cluster": "dstash", "epoch": EPOCH}).encode()  # shortened


def blobs(*some: bytes | None) -> Frame:
    return Frame(codec.pack_blobs(some))


#: (correlation id, moment): requests carry a deadline, replies the peer's clock.
REQUEST, REPLY = (7, NOW + 5000), (7, NOW)

EXAMPLES: list[tuple[tuple[int, int], Message]] = [
    ((1, 0), Hello("dstash")),
    (
        (1, NOW),
        Welcome("dstash", "peer1", 1, 1, {"key_bytes": 400}, TOPOLOGY, ["peer1", "peer2"], []),
    ),
    (REPLY, Error(26, "too many writes wait for the disk", {"retry_after_ms": 20})),
    (REQUEST, Ping()),
    (REPLY, Pong()),
    (REQUEST, TopologyRequest()),
    (REPLY, TopologyReply(TOPOLOGY, ["peer1"])),
    (REQUEST, Lookup("index", Want.VALUES | Want.DIGEST, KEYS)),
    (
        REPLY,
        Values(2, bytes(range(16)), [1], [], Frame(codec.join_payloads([VALUE, b"\xc0"]))),
    ),
    (REQUEST, Put("index", VERSION, 0, ONE_KEY, blobs(VALUE))),
    (REPLY, Stored([[0, 0, VERSION]])),
    (REQUEST, Delete("index", VERSION, ONE_KEY)),
    (REQUEST, Fetch("index", KEYS)),
    (REPLY, Records([], blobs(RECORD, None))),
    (REQUEST, Apply("index", ONE_KEY, blobs(RECORD))),
    (REQUEST, Scan("index", b"k", PARTITIONS, b"", 2000, 2097152, True)),
    (
        REPLY,
        Page(1, b"", 1, ONE_KEY, Frame(codec.join_payloads([VALUE])), RANGE_DIGEST, b"", NOW),
    ),
    (REQUEST, StatusRequest()),
    (REPLY, StatusReply({"ready": True, "records": 1})),
    (REQUEST, ScanKeys("index", b"", PARTITIONS, b"key", 2000, 2097152)),
    (REQUEST, Count("index", b"", PARTITIONS, b"", 2000, 2097152, True, b"key", NOW)),
    (
        REQUEST,
        Change(
            "@index",
            b"caller01",
            stamp_at(NOW),
            False,
            ChangeKind.INCREMENT,
            KEEP,
            0,
            b"",
            pack_amounts(Amounts(1, 0, 0, 100)),
            KEYS,
            blobs(),
            EPOCH,
        ),
    ),
    (
        REPLY,
        Changed(
            bytes([ChangeOutcome.APPLIED, ChangeOutcome.UNCHANGED]),
            pack_numbers([stamp_at(NOW, 1), stamp_at(NOW)]),
            b"",
            [],
            blobs(b"\x07", None),
        ),
    ),
    (REQUEST, Settle("@index", KEYS)),
    (REQUEST, AdminRequest("remove", ["peer3"])),
    (REPLY, AdminReply(TOPOLOGY)),
    (REQUEST, Repair()),
    (REQUEST, Compact()),
    (REQUEST, IndexesRequest(PARTITIONS)),
    (REPLY, IndexesReply(1, 1, [["index", 1, 60, 1]])),
    (REQUEST, DropRequest("index", b"", stamp_at(NOW))),
    (REQUEST, IndexSettingsRequest("index", {"ttl": 3_600_000, "max_ttl": 0}, stamp_at(NOW))),
    ((7, 0), DigestsRequest(PARTITIONS)),
    (REPLY, DigestsReply(bytes(range(DIGEST_BYTES)), b"\0", bytes([0, 0, 0, 1]), bytes(8))),
    ((7, 0), BucketsRequest(1507)),
    (REPLY, BucketsReply(bytes(range(DIGEST_BYTES)))),  # shortened: there are 256
    ((7, 0), VersionsRequest(PARTITIONS, b"", b"")),
    (REPLY, VersionsReply(b"", VERSION, blobs(STORAGE_KEY))),
    ((7, 0), Pull(blobs(STORAGE_KEY))),
    ((7, 0), Push(blobs(STORAGE_KEY), blobs(RECORD), compared=True)),
    ((7, 0), CopyRequest(PARTITIONS, b"", 49152)),
    (REPLY, CopyReply(b"", blobs(STORAGE_KEY), blobs(RECORD))),
    (REQUEST, Hint("index", "peer3", ONE_KEY)),
    ((7, 0), FloorRequest(PARTITIONS, stamp_at(NOW))),
    ((7, 0), SetHorizon(PARTITIONS, stamp_at(NOW))),
    (REPLY, HorizonReply(PARTITIONS)),
    ((7, 0), SeenRequest("peer1", stamp_at(NOW), "store1", 3, NOW - 5000, True)),
    (REPLY, SeenReply(stamp_at(NOW), stamp_at(NOW), "store2", 5, NOW - 9000, SEEN, OTHERS)),
    ((7, 0), ReleaseFloor(PARTITIONS, stamp_at(NOW))),
    (REPLY, FloorReleased(PARTITIONS)),
    ((7, 0), ClockRequest()),
    (REPLY, ClockReply(NOW, stamp_at(NOW))),
    ((7, 0), HistoryRequest(NOW - 2000)),
    (REPLY, HistoryReply(pack_samples([Sample(NOW, 10, 2, 4000, 2, 40, 900, 2000, 9000)]))),
    (REQUEST, Prepare(NOW, VERSION[8:12], bytes(20), blobs(REGISTER_KEY))),
    (
        REPLY,
        Promised(
            b"\0",
            VERSION,
            NOW.to_bytes(8, "big"),
            bytes(8),
            stamp_at(NOW, 2),
            3,
            NOW - 5000,
            blobs(REGISTER),
        ),
    ),
    (REQUEST, Accept(blobs(REGISTER_KEY), blobs(REGISTER))),
    (REPLY, Accepted(b"\0", NOW.to_bytes(8, "big"), stamp_at(NOW, 2), 3, NOW - 5000)),
    ((7, 0), PromisesRequest(PARTITIONS, b"")),
    (
        REPLY,
        PromisesReply(b"", pack_numbers([NOW]), blobs(REGISTER_KEY), pack_numbers([stamp_at(NOW)])),
    ),
    ((7, 0), RegisterFloorsRequest(PARTITIONS)),
    (REPLY, RegisterFloorsReply(pack_numbers([stamp_at(NOW)]))),
]


#: The example of the W3C recommendation.
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def envelope(surroundings: tuple[int, int], message: Message) -> Envelope:
    """Return a message with its correlation id and moment, and the epoch of the examples."""
    correlation, moment = surroundings
    return Envelope(correlation, EPOCH if correlation != 1 or moment else 0, moment, message)


def signature(cls: Any) -> str:
    """Return kind, name and fields as the headings of the document show them."""
    names = {"int": "uint", "str": "str", "bytes": "bin", "bool": "bool", "Frame": "frame"}

    def form(value: Any) -> str:
        plain = value.type.split("[")[0]
        return f"{value.name} {names.get(plain, 'map' if plain == 'dict' else 'array')}"

    given = ", ".join(form(field) for field in fields(cls))
    return f"{cls.KIND} {cls.__name__}({given})"


def traced() -> Envelope:
    """Return the look-up of the examples as part of a trace."""
    return envelope(REQUEST, Lookup("index", Want.VALUES | Want.DIGEST, KEYS))._replace(trace=TRACE)


def block(sent: Envelope) -> str:
    """Return the fenced block that shows a message, a frame a line."""
    lines = "\n".join(frame.hex() for frame in encode(sent))
    name = "Traced" if sent.trace else type(sent.message).__name__
    return f"```frames {name}\n{lines}\n```"


if __name__ == "__main__":
    for surroundings, message in EXAMPLES:
        print(f"#### {signature(type(message))}\n\n{block(envelope(surroundings, message))}\n")  # noqa: T201
    print(block(traced()))  # noqa: T201
