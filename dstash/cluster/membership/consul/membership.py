"""Membership in Consul.

Under ``dstash/<cluster>/`` stand ``topology`` (changed by compare-and-set on its ModifyIndex),
``peers/<id>`` (one lock a peer, its value the announcement) and ``locks/<name>``. Names are
percent-encoded where a key could not hold them as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from dstash.cluster.membership.consul.http import READ_TIMEOUT, ConsulClient
from dstash.cluster.membership.consul.lock import SessionLock, folder
from dstash.cluster.membership.consul.session import LAST_PATIENCE, Lease
from dstash.cluster.membership.consul.watch import Watcher
from dstash.cluster.membership.interface import NOTHING, StoredTopology, Token
from dstash.cluster.topology.announcement import Announcement, decode
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipError, ProtocolError


class ConsulMembership:
    """A ``Membership`` kept by Consul, reached through one agent.

    Opening it asks nothing of Consul yet, so it can be opened while Consul is away.

    Args:
        url: of the agent, such as ``http://127.0.0.1:8500``.
        cluster: name of the cluster.
        token: ACL token; needs to write ``dstash/<cluster>/`` keys, sessions, and the service.
        ca_file, cert_file, key_file: PEM files for ``https``.
        wait: longest time of one blocking query, in seconds.
        patience: for an answer that Consul does not hold back, in seconds.

    Raises:
        ConfigError: the URL is not one, or a file is not there.
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
        patience: float = READ_TIMEOUT,
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
        self._mutex = threading.Lock()  # guards the coming and going of the lease
        self._lease: Lease | None = None

    def read(self) -> StoredTopology:
        """See ``Membership.read``. ``MembershipError`` when what is stored is no topology."""
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
        """See ``Membership.announce``. May wait some seconds for a dead process's lock to fall."""
        with self._mutex:
            if self._lease is None:
                lease = Lease(SessionLock(self._client, self.cluster, announcement))
                lease.take()
                self._lease = lease
            elif self._lease.peer == announcement.peer:
                self._lease.update(announcement)
            else:
                raise MembershipError(f"announced as {self._lease.peer!r} already: resign first")

    def is_announced(self) -> bool:
        """See ``Membership.is_announced``."""
        lease = self._lease
        return lease is not None and lease.is_held

    def alive(self) -> Mapping[str, Announcement]:
        """See ``Membership.alive``."""
        items = self._client.kv.get(f"{self._folder}peers/", recurse=True)[1] or ()
        found = (decode(item["Value"]) for item in items if item.get("Session"))
        return {one.peer: one for one in found if one is not None}

    def watch(self, timeout: float) -> bool:
        """See ``Membership.watch``. The first one returns True as soon as Consul answers."""
        return self._watcher.watch(timeout)

    def wake(self) -> None:
        """See ``Membership.wake``."""
        self._watcher.wake()

    def acquire(self, name: str) -> bool:
        """See ``Membership.acquire``. False too while this peer is not announced."""
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
            lease.give_up()

    def close(self) -> None:
        """See ``Membership.close``."""
        self._client.http.patience = LAST_PATIENCE
        self.resign()
        self._watcher.close()
        self._client.close()  # breaks off the blocking query that the watcher waits in
        self._watcher.join()

    def _query(self, index: int) -> tuple[int, Hashable]:
        found, items = self._client.kv.get(
            self._folder, recurse=True, index=str(index), wait=self._wait
        )
        return int(found), frozenset(self._mark(item) for item in items or ())

    def _mark(self, item: dict[str, Any]) -> Hashable:
        """Return what of a key matters to a watch. Named locks come and go without notice."""
        if item["Key"].startswith(f"{self._folder}locks/"):
            return None
        return item["Key"], item["ModifyIndex"], item.get("Session")
