"""The trace of a run: a running hash that identifies it, and its last events."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from xxhash import xxh3_64

from dstash.errors import DStashError
from dstash.store.record import HEAD_BYTES, open_record
from dstash.version import unpack
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Apply, Error, Records, Stored, Values
from dstash.wire.shapes import Frame, Message

_ANSWERS: Final = {Error, Records, Stored, Values}
_KEPT: Final = 60_000
_LINES: Final = 120


class _Delivery(NamedTuple):
    moment: int
    source: str
    target: str
    parts: list[bytes]


class _Note(NamedTuple):
    moment: int
    text: str
    key: bytes | None


class Trace:
    """A log of deliveries and notes: cheap to write, decoded only when read."""

    def __init__(self) -> None:
        self._hash = xxh3_64()
        self._kept: deque[_Delivery | _Note] = deque(maxlen=_KEPT)
        self.deliveries = 0

    def delivered(self, moment: int, source: str, target: str, parts: list[bytes]) -> None:
        """Record a message that arrived."""
        self.deliveries += 1
        update = self._hash.update
        update(b"%d %s %s" % (moment, source.encode(), target.encode()))
        for part in parts:
            update(part)
        self._kept.append(_Delivery(moment, source, target, parts))

    def note(self, moment: int, text: str, key: bytes | None = None) -> None:
        """Record another event; with ``key``, as an event of that key."""
        self._hash.update(f"{moment} {text}".encode())
        self._kept.append(_Note(moment, text, key))

    def digest(self) -> str:
        """Return the hash of all events."""
        return self._hash.hexdigest()

    def of_key(self, key: bytes) -> list[str]:
        """Return readable lines about the last events of a key."""
        lines = []
        asked: set[tuple[str, str, int]] = set()
        for event in self._kept:
            if isinstance(event, _Note):
                if event.key in (None, key):
                    lines.append(f"{_clock(event.moment)} -- {event.text}")
                continue
            line = _describe(event, key, asked)
            if line is not None:
                lines.append(line)
        return lines[-_LINES:]


def _describe(event: _Delivery, key: bytes, asked: set[tuple[str, str, int]]) -> str | None:
    try:
        envelope = decode(event.parts)
    except DStashError as error:
        return f"{_clock(event.moment)} {event.source} -> {event.target}: garbage ({error})"
    answered = (event.target, event.source, envelope.correlation)
    is_answer = answered in asked and type(envelope.message) in _ANSWERS
    asked.discard(answered)
    if not is_answer and not any(key in part for part in event.parts):
        return None
    if not is_answer:
        asked.add((event.source, event.target, envelope.correlation))
    head = f"{_clock(event.moment)} {event.source} -> {event.target} #{envelope.correlation}"
    return f"{head} e{envelope.epoch} {_summary(envelope, key)}"


def _summary(envelope: Envelope, key: bytes) -> str:
    message = envelope.message
    name = type(message).__name__
    facts = []
    version = getattr(message, "version", None)
    if isinstance(version, bytes) and len(version) == 20:
        facts.append(show_version(version))
    if isinstance(message, Error):
        facts.append(f"{message.code} {message.text}")
    elif isinstance(message, Values):
        facts.append(f"missing={message.missing} corrupt={message.corrupt} {message.values[:40]!r}")
    elif isinstance(message, Stored):
        shown = [(place, code, show_detail(detail)) for place, code, detail in message.rejected]
        facts.append(f"rejected={shown}" if shown else "all")
    facts += _records(message, key)
    return " ".join([name, *facts])


def _records(message: Message, key: bytes) -> list[str]:
    """Return the records of a message, of ``key`` alone where the message names its keys."""
    frame = getattr(message, "records", None)
    if frame is None:
        return []
    shown = []
    with contextlib.suppress(DStashError):
        records = codec.unpack_optional_blobs(frame)
        keys = _keys(message, len(records))
        shown = [
            show_record(record)
            for storage_key, record in zip(keys, records, strict=True)
            if storage_key is None or storage_key.endswith(key)
        ]
    return shown


def _keys(message: Message, count: int) -> list[bytes] | list[None]:
    if isinstance(message, Records):
        return [None] * count
    frame: Frame | None = getattr(message, "keys", None)
    if isinstance(message, Apply) or frame is not None:
        return codec.unpack_blobs(frame or Frame(b"\x90"))
    return [None] * count


def show_detail(detail: object) -> str:
    """Return a rejection as readable text."""
    return show_version(detail) if isinstance(detail, bytes) else str(detail)


def show_version(version: bytes) -> str:
    """Return a version as readable text."""
    if len(version) != 20:
        return repr(version)
    stamp, writer, touched = unpack(version)
    tail = f"+{_show_stamp(touched)}" if touched else ""
    return f"v{_show_stamp(stamp)}/{writer.hex()}{tail}"


def _show_stamp(stamp: int) -> str:
    return f"{(stamp >> 16) % 100_000_000}.{stamp & 0xFFFF}"


def show_record(record: bytes | None) -> str:
    """Return a record as readable text."""
    if record is None:
        return "absent"
    if len(record) < HEAD_BYTES:
        return "stump"
    opened = open_record(record)
    what = "tombstone" if opened.is_tombstone else repr(opened.payload[:24])
    expiry = f" until {opened.expiry % 100_000_000}" if opened.expiry else ""
    return f"[{show_version(opened.version)} {what}{expiry}]"


def _clock(moment: int) -> str:
    return f"{moment / 1_000_000:11.6f}"


def around(lines: list[str]) -> Iterator[str]:
    """Yield lines, indented below a failure."""
    for line in lines:
        yield f"    {line}"
