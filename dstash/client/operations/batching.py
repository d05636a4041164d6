"""The division of a batch into parts that are sorted together, and of those into chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, TypeVar

from dstash.wire.keys import Key

T = TypeVar("T")

#: Chunks that are started together: peers work on the first chunks while the next are packed.
_CHUNKS_AT_ONCE: Final = 4

#: One key of a write: the key, its encoded form, and its content (a payload or a record; empty for
#: a delete). A plain tuple, because a batch has a hundred thousand of them, and the garbage
#: collector stops tracking tuples.
Item = tuple[Key, bytes, bytes]

encoded_of: Final = itemgetter(1)
content_of: Final = itemgetter(2)
#: The most bytes that an item takes on the wire in addition to key and content.
_OVERHEAD_BYTES: Final = 10


def interleave(groups: Iterable[Sequence[T]]) -> list[T]:
    """Return the chunks of the groups in alternation, so that every peer has work early."""
    rows = itertools.zip_longest(*groups)
    return [chunk for row in rows for chunk in row if chunk is not None]


def chunked(chunks: Sequence[T]) -> Iterator[list[T]]:
    """Yield chunks in lists of those that are started together."""
    for begin in range(0, len(chunks), _CHUNKS_AT_ONCE):
        yield list(chunks[begin : begin + _CHUNKS_AT_ONCE])


def largest_of(items: Sequence[Item]) -> int:
    """Return an upper bound of the bytes that an item takes on the wire."""
    keys = max(map(len, map(encoded_of, items)), default=0)
    return keys + max(map(len, map(content_of, items)), default=0) + _OVERHEAD_BYTES


def split_by_size(
    items: Sequence[Item], most_keys: int, most_bytes: int, largest: int
) -> Iterator[Sequence[Item]]:
    """Cut items into runs of bounded size; an item above the bound is a run of its own.

    Args:
        items: of a batch.
        most_keys: in a run.
        most_bytes: in a run.
        largest: an upper bound of the bytes of one item; it often saves adding up all sizes.
    """
    for begin in range(0, len(items), most_keys):
        run = items[begin : begin + most_keys]
        if len(run) * largest <= most_bytes or _weight(run) <= most_bytes:
            yield run
        else:
            yield from _runs_by_weight(run, most_bytes)


def _weight(run: Sequence[Item]) -> int:
    weight = sum(map(len, map(encoded_of, run))) + sum(map(len, map(content_of, run)))
    return weight + _OVERHEAD_BYTES * len(run)


def _runs_by_weight(items: Sequence[Item], most_bytes: int) -> Iterator[Sequence[Item]]:
    begin = total = 0
    for place, (_, encoded, content) in enumerate(items):
        weight = len(encoded) + len(content) + _OVERHEAD_BYTES
        if place > begin and total + weight > most_bytes:
            yield items[begin:place]
            begin, total = place, 0
        total += weight
    yield items[begin:]
