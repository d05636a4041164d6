"""Storage keys and records of many keys of one index, as a peer stores them."""

from __future__ import annotations

from collections.abc import Sequence

from dstash import loops
from dstash.store.record import Keyspace


def seal(
    space: Keyspace, keys: Sequence[bytes], head: bytes, payloads: Sequence[bytes]
) -> list[tuple[bytes, bytes]]:
    """Return (storage key, record) pairs for keys whose records share one head.

    Raises:
        Misrouted: the partition of a key is not held here.
    """
    try:
        return loops.seal(space.prefixes, space.salt, keys, head, payloads)
    except TypeError:
        raise space.misrouted() from None


def locate(space: Keyspace, keys: Sequence[bytes]) -> list[bytes]:
    """Return the storage keys of ``keys``; ``Misrouted`` if a partition is not held here."""
    try:
        return loops.locate(space.prefixes, keys)
    except TypeError:
        raise space.misrouted() from None
