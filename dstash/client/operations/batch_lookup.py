"""A look-up of many keys whose result has the order of the keys.

The keys are sent in the order of partitions (see ``routing.py``), and their values arrive in that
order. A dictionary keeps the order in which keys were added; to add them again afterwards would
take longer than to decode the values. So a chunk knows the places of its keys in the batch, the
values are put into a list by place, and the dictionary is made from keys and list at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

from dstash.client.operations.base import Chunk
from dstash.client.operations.batching import chunked, interleave
from dstash.client.operations.reads import PARTITIONS_PER_BAND, LookupOperation, ReadChunk
from dstash.client.routing import group
from dstash.errors import ProtocolError
from dstash.wire.keys import Key, encode_keys
from dstash.wire.messages import Values

#: The value of a key that is not found.
_ABSENT: Final = object()


class _Picked(Sequence[Key]):
    """Some keys of a batch, by their places in it; looked up only where an error occurs."""

    def __init__(self, keys: Sequence[Key], places: Sequence[int]) -> None:
        self._keys = keys
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Key: ...

    @overload
    def __getitem__(self, place: slice) -> list[Key]: ...

    def __getitem__(self, place: int | slice) -> Key | list[Key]:
        if isinstance(place, slice):
            return [self._keys[number] for number in self.places[place]]
        return self._keys[self.places[place]]


class BatchLookup(LookupOperation):
    """Looks up any number of distinct keys; the result has the order of ``keys``."""

    _values: list[Any] | None = None

    def _chunks(self) -> Iterator[list[Chunk]]:
        keys, size = self._keys, self.session.keys_per_read
        self._values = [_ABSENT] * len(keys)
        if self.is_linearizable:
            yield from super()._chunks()
            return
        for begin in range(0, len(keys), size):
            encoded, self._encoded = self._encoded, None
            yield from chunked(
                self._first_chunks(begin, encoded or encode_keys(keys[begin : begin + size]))
            )

    def _first_chunks(self, begin: int, encoded: Sequence[bytes]) -> list[Chunk]:
        """Return chunks for a part of the keys, of which none was sent yet.

        Args:
            begin: the place of the part in the batch.
            encoded: its keys.
        """
        table, size = self.session.read_targets(self.level), self.keys_per_chunk()
        places = range(begin, begin + len(encoded))
        return interleave(
            [
                ReadChunk(
                    self,
                    targets,
                    _Picked(self._keys, part := members[first : first + size]),
                    0,
                    [encoded[place - begin] for place in part],
                )
                for first in range(0, len(members), size)
            ]
            for targets, members in group(encoded, places, table, PARTITIONS_PER_BAND).items()
        )

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        if self._values is None or not isinstance(keys, _Picked):
            super().deliver(keys, values)
            return
        decoded, places = self.decoded(keys, values), keys.places
        found = self._values
        for place, value in zip(places, decoded, strict=True):
            found[place] = value
        try:
            for number in values.missing:
                found[places[number]] = _ABSENT
        except (IndexError, TypeError):
            raise ProtocolError("a peer reported a missing key that was not requested") from None

    def result(self) -> dict[Key, Any]:
        """Return the values found."""
        if self._values is not None and self.error is None:
            self.found, self._values = self._in_order(self._values), None
        return super().result()

    def _in_order(self, values: Sequence[Any]) -> dict[Key, Any]:
        """Return the values by key, in the order of the batch; ``found`` has those sent again."""
        again = self.found
        if not again and _ABSENT not in values:
            return dict(zip(self._keys, values, strict=True))
        pairs = zip(self._keys, values, strict=True)
        return {
            key: found
            for key, value in pairs
            if (found := again.get(key, value) if again else value) is not _ABSENT
        }
