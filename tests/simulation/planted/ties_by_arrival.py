"""Planted fault: of two records with the same version, the last to arrive wins."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.store.digest import _HASHED, DigestKind
from dstash.store.record import version_of
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World

#: A look-up repairs what differs, and a batch or a delete replaces it.
_LEFT_OUT = (
    *("lookup", "batch_lookup", "record", "exists", "scan"),
    *("put_ttl", "batch_put", "delete", "batch_delete"),
)


def _has_higher_version(record: bytes, other: bytes) -> bool:
    return version_of(record) > version_of(other)


@plant("ties-by-arrival", "I1", "I3", "I4")
class TiesByArrival(World):
    """Compares only versions, both in merges and between replicas.

    Two touches of a record in one millisecond have the same version and different expiries.
    """

    def __init__(self, seed: int) -> None:
        conditions = replace(
            planted_conditions(seed, "fork"),
            clients=12,
            calls=15,
            keys=8,
            aligned=20 * MS,
            client_offset_ms=0,
            jitter=60,
            pause=20 * MS,
            mix=(*((kind, 0) for kind in _LEFT_OUT), ("touch", 50), ("put", 10)),
        )
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.store.merge.outranks", _has_higher_version)
        by_version = {DigestKind.CONTENT: _HASHED[DigestKind.VERSIONS]}
        yield mock.patch.dict(_HASHED, by_version)
