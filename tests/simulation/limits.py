"""Limits of requests, replies and pages, so small that a few records reach them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.client.operations import key_lists, page_reads, reads, writes
from dstash.cluster.replication import handlers, throttle
from dstash.peer import reads as peer_reads
from dstash.peer import scan_pages
from dstash.peer.admission import backlog
from tests.simulation.conditions import Conditions

_SMALL = (
    (reads, {"KEYS_PER_CHUNK": 12, "REPLY_BYTES": 900}),
    (page_reads, {"PAGE_KEYS": 5, "PAGE_BYTES": 700}),
    (key_lists, {"PAGE_KEYS": 4}),
    (writes, {"KEYS_PER_CHUNK": 16, "BYTES_PER_CHUNK": 1_500}),
    (handlers, {"PAGE_BYTES": 1_200, "PAGE_KEYS": 9}),
    (backlog, {"COMMIT_BYTES": 2_000}),
    (peer_reads, {"REPLY_BYTES": 900, "HEADS_BYTES": 2_500}),
    (scan_pages, {"VISITS": 10}),
)


def limits_of(conditions: Conditions) -> Iterable[AbstractContextManager[object]]:
    """Return the patches that set the limits of a world."""
    least, most = conditions.page_bytes
    yield mock.patch.multiple(throttle, _GENTLE_PAGE=least, _MAX_GENTLE_PAGE=most)
    for module, values in _SMALL if conditions.has_small_limits else ():
        yield mock.patch.multiple(module, **values)
