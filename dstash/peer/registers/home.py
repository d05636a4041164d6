"""The home of registers: requests of clients, from their message to their answer.

It checks a request, queues its operations with the coordinator, and answers when each has its
decision, or at the deadline. A copy of a request that the network has duplicated gets no second
application, and the same answer (D7).
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.errors import Busy, ClockSkew, LimitError, NotReady, ProtocolError, UsageError
from dstash.limits import MAX_KEY_BYTES, MAX_TTL_SECONDS
from dstash.peer.admission.requests import Ticket
from dstash.peer.registers.coordinator import MOVING, Coordinator
from dstash.peer.registers.operations import Operation
from dstash.peer.registers.pending import Batch
from dstash.peer.registers.requested import Requested
from dstash.store.record import Keyspace
from dstash.store.register.ballot import SIGN
from dstash.store.register.header import CALLER_BYTES
from dstash.store.sealing import locate
from dstash.types import NEVER
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.registers import (
    KEEP,
    MAX_REGISTERS,
    NEVER_EXPIRES,
    Amounts,
    Change,
    Changed,
    ChangeKind,
    Settle,
    unpack_amounts,
    unpack_expected,
)
from dstash.wire.shapes import weight_of

#: The deadline (milliseconds) of a request that has none.
_DEADLINE_MS: Final = 60_000
#: Operations that may wait for their decision, and the bytes of requests.
_MAX_WAITING: Final = 20_000
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
#: How long (milliseconds) an answer is kept for duplicates at least, by a clock that is never set:
#: after this peer's clock was set back, a duplicate can come before its deadline again.
_KEEP_MS: Final = 60_000
#: Answers that are kept for duplicates, and their bytes.
_MAX_ANSWERS: Final = 20_000
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
#: Copies that are remembered as refused.
_MAX_REFUSED: Final = 20_000

_RETRY_MS: Final = 50

#: Which connection sent which request.
_Copy = tuple[bytes, int, bytes, int]


@dataclass(eq=False, slots=True)
class _Waiting:
    ticket: Ticket
    batch: Batch
    weight: int
    deadline: int
    copy: _Copy | None


@dataclass(eq=False, slots=True)
class _Given:
    """An answer that is kept until its deadline has passed, and until a steady time."""

    deadline: int
    until: int
    answer: Changed | None = None


class Home:
    """The requests for registers of one peer.

    Args:
        coordinator: decides operations.
        clock: the cluster clock, as this peer knows it.
        lost_until: returns the stamp up to which copies of a request for a storage key may have
            been applied without a trace; takes the epoch in which its number was made, and the key.
        steady: returns milliseconds that never go back.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        clock: ClusterClock,
        lost_until: Callable[[int, bytes], Stamp],
        steady: Callable[[], int],
    ) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._lost_until = lost_until
        self._steady = steady
        self._deadlines: list[tuple[int, int, _Waiting]] = []
        self._serials = itertools.count()
        self._operations = self._bytes = 0
        self._ready: list[tuple[Ticket, Changed]] = []
        #: By copy, the answer; none yet while it waits.
        self._answers: OrderedDict[_Copy, _Given] = OrderedDict()
        self._answer_bytes = 0
        #: Copies that were refused.
        self._refused: OrderedDict[_Copy, _Given] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many operations wait for their decision."""
        return self._operations

    @property
    def has_work(self) -> bool:
        """Whether requests wait for their answers."""
        return bool(self._operations or self._ready)

    def begin(
        self, ticket: Ticket, message: Change | Settle, space: Keyspace, deadline: int, now: int
    ) -> None:
        """Begin a request; its answer comes with ``take``.

        Args:
            ticket: where the answer goes.
            message: the request.
            space: the keyspace of its index.
            deadline: in milliseconds since 1970 on this peer's clock; 0 for none.
            now: that clock.

        Raises:
            Busy: too much waits, or a topology change moves a register.
            ClockSkew: the number of the request is far ahead of the cluster clock.
            LimitError: it has too many keys, or a key is too long.
            Misrouted: this peer holds no replica of a register.
            NotReady: this peer's replica does not count yet.
            ProtocolError: it is malformed.
            UsageError: it is invalid.
        """
        copy = None
        if isinstance(message, Change):
            copy = _copy(ticket, message)
            if self._is_duplicate(ticket, copy, now):
                return
        keys = _keys(message)
        requested = self._operations_of(message, len(keys))
        storage_keys = locate(space, keys)
        self._check_voters(storage_keys)
        if isinstance(message, Change) and message.repeated:
            lost_until = [self._lost_until(message.epoch, key) for key in storage_keys]
            requested.lost_until = lost_until if any(lost_until) else ()
        weight = weight_of(message)
        if self._operations and (
            self._operations + len(keys) > _MAX_WAITING or self._bytes + weight > _MAX_WAITING_BYTES
        ):
            raise Busy("too many changes of registers are waiting", retry_after_ms=_RETRY_MS)
        self._queue(ticket, copy, storage_keys, requested, weight, deadline or now + _DEADLINE_MS)

    def refuse(self, ticket: Ticket, message: Change, deadline: int, now: int) -> bool:
        """Take note that a copy of a request is refused: no duplicate of it may be applied.

        A request with a number of the future is repeated under another id, and one that was refused
        up to its deadline has failed for its caller.

        Returns:
            whether it may be refused; not if it is a duplicate of a copy that is being applied.
        """
        copy = _copy(ticket, message)
        if copy in self._answers:
            return False
        if len(message.caller) == CALLER_BYTES:  # else no copy of it can be applied
            self._drop_refused(now)
            self._refused.setdefault(copy, _Given(deadline, self._steady() + _KEEP_MS))
        return True

    def _drop_refused(self, now: int) -> None:
        steady = self._steady()
        while self._refused:
            first, given = next(iter(self._refused.items()))
            is_full = len(self._refused) >= _MAX_REFUSED
            if not is_full and (given.deadline >= now or given.until >= steady):
                break
            del self._refused[first]

    def _queue(
        self,
        ticket: Ticket,
        copy: _Copy | None,
        storage_keys: Sequence[bytes],
        requested: Requested,
        weight: int,
        deadline: int,
    ) -> None:
        batch = Batch.of(
            len(storage_keys), lambda answer: self._done(waiting, answer), is_read=copy is None
        )
        waiting = _Waiting(ticket, batch, weight, deadline, copy)
        self._operations += len(storage_keys)
        self._bytes += weight
        if copy is not None:
            self._answers[copy] = _Given(deadline, self._steady() + _KEEP_MS)
        heapq.heappush(self._deadlines, (deadline, next(self._serials), waiting))
        self._coordinator.submit_all(storage_keys, requested, batch)

    def _operations_of(self, message: Change | Settle, count: int) -> Requested:
        if isinstance(message, Settle):
            return Requested(None)
        ahead = self._clock.ahead_ms(message.number)
        if ahead and not message.is_ahead:
            raise ClockSkew(
                f"the number of the request is {ahead} ms ahead of the cluster's clock",
                ahead_ms=ahead,
            )
        return _operations(message, count, self._clock.time())

    def _check_voters(self, storage_keys: Sequence[bytes]) -> None:
        coordinator = self._coordinator
        for storage_key in storage_keys:
            voters = coordinator.voters(storage_key)
            if voters.is_moving:
                raise Busy(MOVING, retry_after_ms=_RETRY_MS)
            if coordinator.me not in voters.counted:
                raise NotReady(f"{coordinator.me} has not streamed all of its data yet")

    def _is_duplicate(self, ticket: Ticket, copy: _Copy, now: int) -> bool:
        """Whether this connection has sent a request already; its answer is repeated."""
        self._drop_answers(now)
        known = self._answers.get(copy)
        if known is None:
            return copy in self._refused  # it gets no answer
        if known.answer is not None:
            self._ready.append((ticket, known.answer))
        return True

    def _drop_answers(self, now: int) -> None:
        steady = self._steady()
        while self._answers:
            first, given = next(iter(self._answers.items()))
            is_full = len(self._answers) > _MAX_ANSWERS or self._answer_bytes > _MAX_ANSWER_BYTES
            if not is_full and (given.deadline >= now or given.until >= steady):
                break
            self._forget(first)

    def _forget(self, copy: _Copy) -> None:
        answer = self._answers.pop(copy).answer
        if answer is not None:
            self._answer_bytes -= weight_of(answer)

    def _done(self, waiting: _Waiting, answer: Changed) -> None:
        self._operations -= len(waiting.batch.answers)
        self._bytes -= waiting.weight
        self._ready.append((waiting.ticket, answer))
        given = self._answers.get(waiting.copy) if waiting.copy is not None else None
        if given is not None:
            given.answer = answer
            self._answer_bytes += weight_of(answer)

    def take(self, now: int) -> list[tuple[Ticket, Changed]]:
        """Return the answers that are ready, those of requests past their deadlines among them."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, waiting = heapq.heappop(self._deadlines)
            self._coordinator.expire(waiting.batch)
        ready, self._ready = self._ready, []
        return ready

    def wakeup(self) -> int | None:
        """Return when (milliseconds since 1970) the next deadline is; None without one."""
        while self._deadlines and self._deadlines[0][2].batch.is_decided:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None


def _copy(ticket: Ticket, message: Change) -> _Copy:
    return ticket.sender, ticket.correlation, message.caller, message.number


def _keys(message: Change | Settle) -> list[bytes]:
    if not message.index.startswith(SIGN) or len(message.index) == len(SIGN):
        raise UsageError(
            f"index {message.index!r} has no registers: its name must be {SIGN!r} and at least one "
            "more character"
        )
    keys = codec.unpack_keys(message.keys)
    if not 1 <= len(keys) <= MAX_REGISTERS:
        raise LimitError(f"a request has {len(keys)} registers; allowed are 1 to {MAX_REGISTERS}")
    if not all(1 <= len(key) <= MAX_KEY_BYTES for key in keys):
        raise LimitError(f"a key must have 1 to {MAX_KEY_BYTES} bytes")
    if len(set(keys)) != len(keys):
        raise UsageError("a key appears twice in the request")
    return keys


def _operations(message: Change, count: int, time: int) -> Requested:
    """Return the operation of each key.

    Args:
        message: the request.
        count: how many keys it has.
        time: of the cluster clock.
    """
    if message.operation not in set(ChangeKind):
        raise ProtocolError(f"unknown operation {message.operation} on registers")
    kind = ChangeKind(message.operation)
    if len(message.caller) != CALLER_BYTES:
        raise ProtocolError(f"a caller has {CALLER_BYTES} bytes, not {len(message.caller)}")
    payloads = codec.unpack_blobs(message.payloads)
    has_values = kind in (ChangeKind.PUT, ChangeKind.SWAP)
    if len(payloads) != (count if has_values else 0):
        raise ProtocolError(f"{kind.name} of {count} registers has {len(payloads)} values")
    malformed = codec.malformed_payloads(payloads)
    if malformed:
        raise ProtocolError(f"value {malformed[0]} is not one well-formed msgpack object")
    if bool(message.amounts) != (kind is ChangeKind.INCREMENT):
        raise ProtocolError(f"{kind.name} has {len(message.amounts)} bytes of amounts")
    amounts = unpack_amounts(message.amounts, count) if message.amounts else [Amounts(0)]
    expected = unpack_expected(message.expected, count)
    first = amounts[0]
    common = Operation(
        kind,
        message.caller,
        message.number,
        repeated=message.repeated,
        expected=expected[0],
        amount=first.amount,
        initial=first.initial,
        at_least=first.at_least,
        at_most=first.at_most,
        expiry=_expiry(message, kind, time),
        fence=message.fence,
        is_ahead=message.is_ahead,
    )
    return Requested(
        common,
        payloads,
        expected if set(expected) != {common.expected} else (),
        amounts if set(amounts) != {first} else (),
    )


def _expiry(message: Change, kind: ChangeKind, time: int) -> int | None:
    if message.ttl == KEEP:
        if kind is ChangeKind.TOUCH:
            raise UsageError("a touch needs a time to live")
        return None
    if message.ttl == NEVER_EXPIRES:
        return NEVER
    if message.ttl > MAX_TTL_SECONDS * 1000:
        raise LimitError("the time to live is longer than 100 years")
    return time + message.ttl
