"""What a change does to registers, and the request for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dstash.client.operations.batching import Item, content_of, encoded_of
from dstash.client.operations.registers.answers import Answer
from dstash.client.operations.registers.request_ids import Caller
from dstash.errors import Conflict
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.keys import Key, show_key
from dstash.wire.registers import (
    ANY,
    KEEP,
    MAX_INTEGER,
    MIN_INTEGER,
    MISSING,
    Amounts,
    Change,
    ChangeKind,
    ChangeOutcome,
    pack_amounts,
    pack_numbers,
)
from dstash.wire.shapes import EMPTY, Frame

_WITH_VALUES: Final = frozenset({ChangeKind.PUT, ChangeKind.SWAP})


class RequestId(NamedTuple):
    """The id of a request: all copies of it, and the parts of a batch, have the same.

    ``epoch`` is that in which it was made: no copy was sent in an earlier one. ``is_ahead``: the
    number is just above one that the register remembers, which is ahead of the clocks.
    """

    caller: Caller
    number: Stamp
    epoch: int
    is_ahead: bool = False


class Wanted(NamedTuple):
    """What a change does to its keys.

    Attributes:
        kind: of the change.
        ttl: milliseconds, ``KEEP`` or ``NEVER_EXPIRES``.
        fence: a fencing token; 0 for none.
        expected: the version that registers must have: of all keys, or by key.
        amounts: of an increment: of all keys, or by key.
        is_add: whether another version is an answer, not an error.
    """

    kind: ChangeKind
    ttl: int = KEEP
    fence: Stamp = 0
    expected: Stamp | Mapping[Key, Stamp] = ANY
    amounts: Amounts | Mapping[Key, Amounts] | None = None
    is_add: bool = False

    def expected_of(self, key: Key) -> Stamp:
        """Return the version that a register must have."""
        return self.expected if isinstance(self.expected, int) else self.expected[key]

    def message(
        self, index: str, items: Sequence[Item], request: RequestId, *, repeated: bool
    ) -> Change:
        """Return the request for items."""
        keys = [key for key, _, _ in items]
        has_values = self.kind in _WITH_VALUES
        return Change(
            index,
            request.caller.name,
            request.number,
            repeated,
            int(self.kind),
            self.ttl,
            self.fence,
            self._packed_expected(keys),
            self._packed_amounts(keys),
            Frame(codec.pack_blobs(list(map(encoded_of, items)))),
            Frame(codec.pack_blobs(list(map(content_of, items)))) if has_values else EMPTY,
            request.epoch,
            request.is_ahead,
        )

    def is_refused(self, answer: Answer) -> bool:
        """Whether a change that changed nothing is an error for the caller, not an answer."""
        if answer.outcome is ChangeOutcome.UNCHANGED:
            return self.kind is ChangeKind.INCREMENT
        return not self.is_add or answer.version == MISSING  # then its fencing token is too low

    def conflict(self, index: str, key: Key, answer: Answer) -> Conflict:
        """Return the error for a change that was refused."""
        name, version = f"key {show_key(key)} of index {index!r}", answer.version
        expected = self.expected_of(key)
        if answer.outcome is ChangeOutcome.UNCHANGED:
            text = f"{name} was not changed: {self._broken_bounds(key)}"
        elif expected in (ANY, version):
            text = f"{name} was written with a fencing token above {self.fence}"
        else:
            present = f"has version {version}" if version else "does not exist"
            wanted = f"version {expected}" if expected else "an absent key"
            text = f"{name} {present}; {wanted} was expected"
        return Conflict(text, version=version)

    def _broken_bounds(self, key: Key) -> str:
        """Return the bounds that the sum of a key may have left; the answer has no number."""
        amounts = self.amounts if isinstance(self.amounts, Amounts) else (self.amounts or {})[key]
        low, high, amount = amounts.at_least, amounts.at_most, amounts.amount
        bounds = [f"at_least is {low}"] if low > MIN_INTEGER else []
        bounds += [f"at_most is {high}"] if high < MAX_INTEGER else []
        may_overflow = (amount < 0 and low == MIN_INTEGER) or (amount > 0 and high == MAX_INTEGER)
        if not bounds:
            return "the sum would leave the range of 64-bit integers"
        return f"the sum would be out of its bounds ({', '.join(bounds)})" + (
            ", or of 64 bits" if may_overflow else ""
        )

    def _packed_expected(self, keys: Sequence[Key]) -> bytes:
        if not isinstance(self.expected, int):
            return pack_numbers([self.expected[key] for key in keys])
        return b"" if self.expected == ANY else pack_numbers([self.expected])

    def _packed_amounts(self, keys: Sequence[Key]) -> bytes:
        if self.amounts is None:
            return b""
        if isinstance(self.amounts, Amounts):
            return pack_amounts(self.amounts)
        return b"".join([pack_amounts(self.amounts[key]) for key in keys])
