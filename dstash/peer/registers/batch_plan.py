"""What a round writes to each of many registers: ``plan`` for a batch.

What an operation does to an absent register depends on its terms and on the horizon, hardly on the
key. So it is computed once for all keys with the same; the value of each is put behind the header.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from dstash.limits import MAX_VALUE_BYTES
from dstash.peer.registers.operations import read, write
from dstash.peer.registers.pending import Answer, Pending
from dstash.peer.registers.plan import Ballot, Plan, plan, read_present
from dstash.peer.registers.requested import Requested
from dstash.store.record import head, seal_at
from dstash.store.register.header import MAX_HEADER_BYTES, pack_header
from dstash.version import Stamp
from dstash.wire.registers import ChangeKind

#: Larger values may not fit together with the header: only ``plan`` decides that.
_MAX_SIMPLE_BYTES: Final = MAX_VALUE_BYTES - MAX_HEADER_BYTES

#: The record of an operation that writes, as long as its round is not known.
_SOME: Final = b"\0"

_SIMPLE: Final = frozenset({ChangeKind.PUT, ChangeKind.SWAP, ChangeKind.INCREMENT})


class Written(NamedTuple):
    """The result for one register. ``record`` is what must be written; empty for nothing."""

    record: bytes
    answer: Answer


class _Template(NamedTuple):
    """The result for absent registers.

    Attributes:
        answer: of the operation.
        writes: whether a step must be written.
        head: a record up to its value, without the checksum; empty if it must be planned by key.
        value: that is written, if it is equal for all keys.
    """

    answer: Answer
    writes: bool
    head: bytes
    value: bytes


class BatchPlan:
    """Applies the operations of a request, each to the register that a round has read.

    Args:
        requested: the operations.
        last: the step of before: -1 in a new round. In round 0 nothing is written; it only shows
            which operations have to write.
        expired_at: registers whose expiry is up to this time are gone; 0: none.
        emitted: whether the operations were part of an accept that was sent.
    """

    def __init__(
        self, requested: Requested, last: Ballot, expired_at: int, *, emitted: bool
    ) -> None:
        self._requested = requested
        self._last = last
        self._expired_at = expired_at
        self._emitted = emitted
        self._asks = last.round == 0
        self._reads = requested.common is None and not emitted
        self._values = requested.values if requested.has_values else ()
        self._templates: dict[Hashable, _Template] = {}
        self._is_uniform = requested.is_uniform

    def written(self, place: int, key: bytes, base: bytes | None, horizon: Stamp) -> Written:
        """Return what the operation at a place writes.

        Args:
            place: in the request.
            key: the storage key of the register.
            base: its record; None if it is absent.
            horizon: the highest that voters have reported.
        """
        values = self._values
        if base is not None and self._reads:
            answer = read_present(base, self._expired_at)
            if answer is not None:
                return Written(b"", answer)
        if base is not None or (values and len(values[place]) > _MAX_SIMPLE_BYTES):
            return self._finish(self._plan(place, base, horizon), key)
        terms = horizon if self._is_uniform else (horizon, self._requested.terms(place))
        template = self._templates.get(terms)
        if template is None:
            template = self._templates[terms] = self._template(place, horizon)
        answer, writes, beginning, value = template
        if not writes:
            return Written(b"", answer)
        if self._asks:
            return Written(_SOME, answer)
        if not beginning:
            return self._finish(self._plan(place, None, horizon), key)
        return Written(seal_at(key, beginning + (values[place] if values else value)), answer)

    def _template(self, place: int, horizon: Stamp) -> _Template:
        planned = self._plan(place, None, horizon)
        operation, state = self._requested.of(place), planned.state
        is_simple = operation is not None and operation.kind in _SIMPLE
        [(_, answer, changes)] = planned.planned
        beginning = b""
        if is_simple and changes and not state.is_absent:
            record = write(state, planned.ballot.version)
            beginning = head(record.version, record.flags, record.expiry)
            beginning += pack_header(state.header)
        return _Template(answer, self._writes(planned), beginning, state.value)

    def _plan(self, place: int, base: bytes | None, horizon: Stamp) -> Plan:
        pending = Pending(self._requested.of(place), _ignore, self._emitted)
        return plan([pending], read(base, horizon), self._last, self._expired_at)

    def _writes(self, planned: Plan) -> bool:
        return planned.ballot.step > self._last.step or planned.needs_step

    def _finish(self, planned: Plan, key: bytes) -> Written:
        answer = planned.planned[0].answer
        if not self._writes(planned):
            return Written(b"", answer)
        if self._asks:
            return Written(_SOME, answer)
        if planned.ballot.step == self._last.step:
            planned = planned._replace(ballot=planned.ballot.after(1))
        return Written(planned.record(key), answer)


def _ignore(answer: Answer) -> None:
    """Take no answer: a batch takes it from the plan."""
