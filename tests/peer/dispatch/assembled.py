"""The handlers of a peer, assembled as in its core, without the dispatch."""

from __future__ import annotations

from typing import Any

from dstash.cluster.topology.view import View
from dstash.peer.assembly import Handlers, Services, Settings, SharedState
from dstash.peer.dispatch.deferred import DEFERRED
from dstash.store.memory import TwinStore
from dstash.wire.shapes import Message
from tests.peer.parts import NOW, request, view_of


class Assembled:
    """The parts of peer ``a``, a member of a cluster whose epoch it has."""

    def __init__(self, *, freshness_confirmed: bool = True, **settings: Any) -> None:
        chosen = Settings("a", "c", **settings)
        self.store = TwinStore("store-a")
        self.state = SharedState(chosen, self.store, NOW)
        self.services = Services(chosen, self.state, NOW)
        self.handlers = Handlers(chosen, self.state, self.services)
        self.services.health.not_ready = None
        self._freshness_confirmed = freshness_confirmed
        self.install(view_of())

    def install(self, view: View) -> None:
        """Hand a view to all parts that use it here."""
        self.state.keyspaces.install(view)
        self.services.admission.install(view)
        self.services.health.install(view)
        self.services.background.install(view, NOW)
        self.services.registers.install(view)
        self.handlers.deferred.install(view)
        self.handlers.replies.install(view)
        self.state.local_partitions.freshness_confirmed = self._freshness_confirmed

    def begin(self, message: Message) -> None:
        """Hand a request to its handler."""
        DEFERRED[type(message)](self.handlers.deferred, request(message), message, NOW)
