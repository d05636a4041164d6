"""The settings of an index, applied to the writes of clients before they are checked and stored."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.store.record import Keyspace, build_record, is_intact, open_record
from dstash.wire import codec
from dstash.wire.messages import Apply, Put
from dstash.wire.shapes import Frame, Message


def with_expiries(waiting: WaitingWrite) -> Message | Internal:
    """Return the message of a write with the expiries that its records may have.

    The result depends only on the message and on the settings of the epoch in which it was
    admitted, so it is the same on all replicas that admitted it.
    """
    message, space, settings = waiting.message, waiting.space, waiting.settings
    if settings is None or space is None:
        return message
    if isinstance(message, Put):
        return replace(message, expiry=settings.expiry(message.version, message.expiry))
    if isinstance(message, Apply) and settings.max_ttl:
        keys, records = codec.unpack_blobs(message.keys), codec.unpack_blobs(message.records)
        codec.expect_even(keys, records)
        limited = [
            _limited(space, settings, key, record, is_touch=message.is_touch)
            for key, record in zip(keys, records, strict=True)
        ]
        return replace(message, records=Frame(codec.pack_blobs(limited)))
    return message


def _limited(
    space: Keyspace, settings: IndexSettings, key: bytes, record: bytes, *, is_touch: bool
) -> bytes:
    """Return a record that may be stored; a corrupt one stays as it is, and is refused later."""
    if not is_intact(record, key, space.salt):
        return record
    found = open_record(record)
    allowed = settings.record(found, is_touch=is_touch)
    return record if allowed == found else build_record(space.index, key, allowed)
