"""How a batch is cut: into slabs that are sorted as one, and those into the chunks that travel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, TypeVar

from dstash.wire.keys import Key

T = TypeVar("T")

#: Chunks that are begun at once: the peers work on the first ones while others are packed.
_CHUNKS_AT_ONCE: Final = 4

#: One key of a write: the key, its encoded form, and what goes with it (a payload, or a record;
#: empty for a delete). A plain tuple: the garbage collector stops tracking those, and a batch makes
#: them by the hundred thousand.
Item = tuple[Key, bytes, bytes]

encoded_of: Final = itemgetter(1)
content_of: Final = itemgetter(2)
#: What an item takes on the wire beside key and content (bytes), at most.
_OVERHEAD: Final = 10


def interleave(groups: Iterable[Sequence[T]]) -> list[T]:
    """Return the chunks of groups in turns, so that all peers have something to do early."""
    rows = itertools.zip_longest(*groups)
    return [chunk for row in rows for chunk in row if chunk is not None]


def chunked(chunks: Sequence[T]) -> Iterator[list[T]]:
    """Yield chunks as many at a time as are begun at once."""
    for begin in range(0, len(chunks), _CHUNKS_AT_ONCE):
        yield list(chunks[begin : begin + _CHUNKS_AT_ONCE])


def largest_of(items: Sequence[Item]) -> int:
    """Return what no item takes more than on the wire (bytes)."""
    keys = max(map(len, map(encoded_of, items)), default=0)
    return keys + max(map(len, map(content_of, items)), default=0) + _OVERHEAD


def split_by_size(
    items: Sequence[Item], most_keys: int, most_bytes: int, largest: int
) -> Iterator[Sequence[Item]]:
    """Cut items into runs of so many keys and bytes at most; a larger item is a run of its own.

    ``largest`` is what none takes more than: if as many of those fit, none needs to be weighed.
    """
    for begin in range(0, len(items), most_keys):
        run = items[begin : begin + most_keys]
        if len(run) * largest <= most_bytes or _weight(run) <= most_bytes:
            yield run
        else:
            yield from _runs_by_weight(run, most_bytes)


def _weight(run: Sequence[Item]) -> int:
    weight = sum(map(len, map(encoded_of, run))) + sum(map(len, map(content_of, run)))
    return weight + _OVERHEAD * len(run)


def _runs_by_weight(items: Sequence[Item], most_bytes: int) -> Iterator[Sequence[Item]]:
    begin = total = 0
    for place, (_, encoded, content) in enumerate(items):
        weight = len(encoded) + len(content) + _OVERHEAD
        if place > begin and total + weight > most_bytes:
            yield items[begin:place]
            begin, total = place, 0
        total += weight
    yield items[begin:]
