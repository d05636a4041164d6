"""The operations of a request: what all of its keys have in common, and what each has of its own.

A request has many keys, and most batches need the operation of none of them by itself. So there is
no object for each key; ``of`` makes one when it is needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dstash.peer.registers.operations import Operation
from dstash.version import Stamp
from dstash.wire.registers import Amounts, ChangeKind

#: Operations that write a value which does not depend on that of their register.
_WITH_VALUE: Final = frozenset({ChangeKind.PUT, ChangeKind.SWAP})


@dataclass(slots=True)
class Requested:
    """The operations of a request, by place.

    Attributes:
        common: what all keys have in common; None reads.
        values: of each key, for operations with a value.
        expected: the version that each register must have; empty if ``common`` has it.
        amounts: of each key; empty if ``common`` has them.
        lost_until: of each key, see ``Operation``; empty if that is 0.
    """

    common: Operation | None
    values: Sequence[bytes] = ()
    expected: Sequence[Stamp] = ()
    amounts: Sequence[Amounts] = ()
    lost_until: Sequence[Stamp] = ()

    @property
    def has_values(self) -> bool:
        """Whether each operation has a value, which it writes as it is."""
        return self.common is not None and self.common.kind in _WITH_VALUE

    @property
    def is_uniform(self) -> bool:
        """Whether operations differ in their values only."""
        return not (self.expected or self.amounts or self.lost_until)

    @property
    def may_need_no_write(self) -> bool:
        """Whether the operations may be answered without a write if the replicas agree."""
        common = self.common
        return common is None or (common.is_conditional and not common.repeated)

    def terms(self, place: int) -> Hashable:
        """Return what the operation at a place has of its own, but for the value."""
        return (
            self.expected[place] if self.expected else 0,
            self.amounts[place] if self.amounts else None,
            self.lost_until[place] if self.lost_until else 0,
        )

    def of(self, place: int) -> Operation | None:
        """Return the operation at a place; None for a read."""
        common = self.common
        if common is None:
            return None
        amounts = self.amounts[place] if self.amounts else common
        return replace(
            common,
            value=self.values[place] if self.values else b"",
            expected=self.expected[place] if self.expected else common.expected,
            amount=amounts.amount,
            initial=amounts.initial,
            at_least=amounts.at_least,
            at_most=amounts.at_most,
            lost_until=self.lost_until[place] if self.lost_until else 0,
        )
