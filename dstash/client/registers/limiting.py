"""Rate limits: a counter for each period of time; see ``steps.py``."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Final

from dstash.client.calls import Calls
from dstash.client.operations.registers.arguments import new_ttl
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.registers.leases import check_seconds
from dstash.client.registers.names import check_name, key_within
from dstash.client.registers.steps import Pause, Steps
from dstash.errors import Conflict, LimitError
from dstash.wire.keys import Key
from dstash.wire.registers import MAX_INTEGER, Amounts, ChangeKind

#: The random part of a pause until the next period, in seconds: not all callers wake at once.
_SPREAD_S: Final = 0.05
_SHORTEST_PERIOD_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate limit.

    Attributes:
        index: of the counters.
        name: of the limit.
        limit: how many acquisitions a period may have.
        per: seconds in a period.
    """

    index: str
    name: Key
    limit: int
    per: float


def limit_of(index: str, name: Key, limit: int, per: float) -> Limit:
    """Return a limit with checked arguments."""
    check_name(name)
    return Limit(index, name, _count("limit", limit), check_seconds("per", per, _SHORTEST_PERIOD_S))


def acquire(calls: Calls, limit: Limit, count: int, wait: float) -> Steps[bool]:
    """Count acquisitions in the present period; return whether they are within the limit."""
    _count("count", count)
    if count > limit.limit:
        raise LimitError(f"count is {count}, above the limit of {limit.limit} in a period")
    until = monotonic() + check_seconds("wait", wait, 0)
    session = calls.session
    if session.view is None:  # the cluster clock is not known
        yield calls.discovery(calls.deadline(None))
    while True:
        now = session.cluster_time() / 1000
        period = int(now // limit.per)
        left = (period + 1) * limit.per - now
        amounts = Amounts(count, at_most=limit.limit)
        wanted = Wanted(ChangeKind.INCREMENT, new_ttl(left + limit.per), amounts=amounts)
        pairs = [(key_within(limit.name, period), None)]
        result = yield calls.change("a rate limit", limit.index, pairs, wanted, None)
        try:
            result.raise_first()
        except Conflict:
            if monotonic() + left > until:
                return False
            yield Pause(left + _SPREAD_S * session.random_share())
        else:
            return True


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INTEGER:
        raise LimitError(f"{name} is {value!r}; allowed are integers from 1 to 2**63-1")
    return value
