"""Reading the clocks of other members, as a background task."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.tasks import Effect
from dstash.cluster.replication.transfer import ask
from dstash.errors import DStashError
from dstash.wire.replication import ClockReply, ClockRequest


def ask_clock(clock: ClusterClock, peer: str) -> Generator[Effect, Any, None]:
    """Ask one member for its present. Its clock is read from any reply, even an error.

    A member of the previous version rejects the request: its clock counts, its present does not.
    """
    request = clock.asks_present()
    try:
        reply = yield from ask(peer, ClockRequest(), ClockReply)
    except DStashError:
        return  # the next round asks again
    clock.note_present(peer, reply.present, request)
