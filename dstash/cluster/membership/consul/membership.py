"""Membership in Consul.

The keys under ``dstash/<cluster>/`` are ``topology`` (changed by compare-and-set on its
ModifyIndex), ``peers/<id>`` (one lock per peer, with the announcement as value) and
``locks/<name>``. Names are percent-encoded.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from dstash.cluster.membership.consul.http import READ_TIMEOUT_S, ConsulClient
from dstash.cluster.membership.consul.lock import SessionLock, folder
from dstash.cluster.membership.consul.session import RELEASE_TIMEOUT_S, Lease
from dstash.cluster.membership.consul.watch import Watcher
from dstash.cluster.membership.interface import NOTHING, StoredTopology, Token
from dstash.cluster.topology.announcement import Announcement, decode
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipError, ProtocolError


class ConsulMembership:
    """A ``Membership`` in Consul, through one agent.

    Creating it sends no request, so it can be created while Consul is unavailable.

    Args:
        url: the URL of the agent, such as ``http://127.0.0.1:8500``.
        cluster: the name of the cluster.
        token: the ACL token, with write access to ``dstash/<cluster>/`` keys, sessions and the
            service.
        ca_file, cert_file, key_file: PEM files for ``https``.
        wait: the longest time of one blocking query, in seconds.
        patience: the timeout of other requests, in seconds.

    Raises:
        ConfigError: the URL is invalid, or a file is missing.
    """

    def __init__(
        self,
        url: str,
        cluster: str,
        *,
        token: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        wait: float = 30.0,
        patience: float = READ_TIMEOUT_S,
    ) -> None:
        self.cluster = cluster
        self._client = ConsulClient(
            url,
            token=token,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            patience=patience,
        )
        self._folder = folder(cluster)
        self._topology_key = f"{self._folder}topology"
        self._wait = f"{wait:.3f}s"
        self._watcher = Watcher(self._query)
        self._mutex = threading.Lock()  # guards changes of ``_lease``
        self._lease: Lease | None = None

    def read(self) -> StoredTopology:
        """See ``Membership.read``. ``MembershipError`` if the stored value is not a topology."""
        item = self._client.kv.get(self._topology_key, consistency="consistent")[1]
        if item is None:
            return StoredTopology(None, NOTHING)
        try:
            return StoredTopology(Topology.decode(item["Value"] or b""), item["ModifyIndex"])
        except ProtocolError as error:
            raise MembershipError(f"Consul key {self._topology_key}: {error}") from None

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """See ``Membership.compare_and_set``."""
        return bool(self._client.kv.put(self._topology_key, topology.encode(), cas=token))

    def announce(self, announcement: Announcement) -> None:
        """See ``Membership.announce``. May wait some seconds for an earlier lock to expire."""
        with self._mutex:
            if self._lease is None:
                lease = Lease(SessionLock(self._client, self.cluster, announcement))
                lease.take()
                self._lease = lease
            elif self._lease.peer == announcement.peer:
                self._lease.update(announcement)
            else:
                raise MembershipError(f"already announced as {self._lease.peer!r}; resign first")

    def is_announced(self) -> bool:
        """See ``Membership.is_announced``."""
        lease = self._lease
        return lease is not None and lease.is_held

    def alive(self) -> Mapping[str, Announcement]:
        """See ``Membership.alive``."""
        items = self._client.kv.get(f"{self._folder}peers/", recurse=True)[1] or ()
        found = (decode(item["Value"]) for item in items if item.get("Session"))
        return {announcement.peer: announcement for announcement in found if announcement}

    def watch(self, timeout: float) -> bool:
        """See ``Membership.watch``. The first call returns True as soon as Consul replies."""
        return self._watcher.watch(timeout)

    def wake(self) -> None:
        """See ``Membership.wake``."""
        self._watcher.wake()

    def acquire(self, name: str) -> bool:
        """See ``Membership.acquire``. Also False while this peer is not announced."""
        lease = self._lease
        return lease is not None and lease.acquire(name)

    def release(self, name: str) -> None:
        """See ``Membership.release``."""
        lease = self._lease
        if lease is not None:
            lease.release(name)

    def resign(self) -> None:
        """See ``Membership.resign``."""
        with self._mutex:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.release_all()

    def close(self) -> None:
        """See ``Membership.close``."""
        self._client.http.patience = RELEASE_TIMEOUT_S
        self.resign()
        self._watcher.close()
        self._client.close()  # aborts the blocking query of the watcher
        self._watcher.join()

    def _query(self, index: int) -> tuple[int, Hashable]:
        found, items = self._client.kv.get(
            self._folder, recurse=True, index=str(index), wait=self._wait
        )
        return int(found), frozenset(self._state_of(item) for item in items or ())

    def _state_of(self, item: dict[str, Any]) -> Hashable:
        """Return the part of a key that a watch compares; named locks are ignored."""
        if item["Key"].startswith(f"{self._folder}locks/"):
            return None
        return item["Key"], item["ModifyIndex"], item.get("Session")
