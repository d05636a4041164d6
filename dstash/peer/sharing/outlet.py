"""How a peer shares its store: by a heartbeat that shows no data file that is being replaced."""

from __future__ import annotations

import secrets

from dstash.peer.sharing.serving import Outlet
from dstash.store.environment.live import LiveEnvironment
from dstash.store.sharing.heartbeat import Heartbeat
from dstash.store.sharing.mark import Generation
from dstash.store.sharing.places import StorePlace


def outlet(store: LiveEnvironment, heartbeat: Heartbeat, place: StorePlace) -> Outlet:
    """Return how to share a store; before a compaction replaces its file, no ticket is shown.

    A client that still reads the old file would miss what is committed to the new one.

    Args:
        store: the store.
        heartbeat: that of its directory.
        place: where it is, as clients learn it.
    """

    def show(ticket: int, generation: Generation) -> None:
        store.while_current(generation, lambda: heartbeat.show(ticket, generation))

    store.on_replace = lambda: heartbeat.show(0, store.generation)
    return Outlet(place.fields(), show, _new_ticket, lambda: store.generation)


def _new_ticket() -> int:
    return secrets.randbits(63) | 1
