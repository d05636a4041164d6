"""The connections of one virtual process: the real ``Links``, over the virtual network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstash.wire.links import Links
from tests.simulation.network import Machine, Network, VirtualLink


class _NoPoller:
    """A poller that never waits: the network calls back."""

    def watch(self, *sockets: Any) -> None:
        """Ignore."""

    def forget(self, *sockets: Any) -> None:
        """Ignore."""


class VirtualLinks(Links):
    """Opens virtual connections. ``notify`` is called whenever a connection has a message."""

    def __init__(
        self,
        network: Network,
        owner: Machine,
        greeting: Callable[[], list[bytes]],
        notify: Callable[[], None],
    ) -> None:
        super().__init__(None, _NoPoller(), greeting)  # type: ignore[arg-type]  # see the class
        self._network = network
        self._owner = owner
        self._notify = notify

    def _open(self, peer: str, address: str) -> Any:
        if peer in self._links:
            self._drop(peer)
        link = VirtualLink(self._network, self._owner, address, self._greeting, self._notify)
        self._links[peer] = link  # type: ignore[assignment]  # the same words
        self._peer_of[link.socket] = self._peer_of[link.monitor] = peer
        return link

    def ready(self) -> list[object]:
        """Return the handles that a poller would return."""
        links: Any = self._links.values()
        return [handle for link in links for handle in link.ready]
