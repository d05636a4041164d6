"""The session lock of a peer in Consul: a service with a check, a session, and the lock key.

The peer's heartbeat passes the TTL check of its service; the session is bound to that check and to
the health of the node; the session holds the lock key. When the process ends, the check fails
within ``CHECK_TTL_S``, the session ends with it, and the lock is free. (The TTL of a session cannot
be below 10 s and may last twice as long.)

Nothing is registered before the lock looks free, and each run of a process has its own service id,
so that a second process with the same peer id never affects the first.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final
from urllib.parse import urlsplit

from consul import Check

from dstash.cluster.membership.consul.http import ConsulClient
from dstash.cluster.topology.announcement import Announcement, decode, encode
from dstash.cluster.topology.names import safe_name
from dstash.errors import MembershipUnreachable

SERVICE: Final = "dstash"
CHECK_TTL_S: Final = 2.0
_DEREGISTER_AFTER: Final = "1m"  # the minimum of Consul
_SYNC_TIMEOUT_S: Final = 2.0
_SYNC_POLL_INTERVAL_S: Final = 0.05
_CONFLICT: Final = 409


class SessionLock:
    """The lock of one run of one peer. It makes no decisions; not thread-safe.

    Every method may raise ``MembershipUnreachable``.
    """

    def __init__(self, client: ConsulClient, cluster: str, announcement: Announcement) -> None:
        self.announcement = announcement
        self._client = client
        self._cluster = cluster
        self._key = f"{folder(cluster)}peers/{safe_name(announcement.peer)}"
        names = [SERVICE, safe_name(cluster), safe_name(announcement.peer), uuid.uuid4().hex[:8]]
        self._service = "-".join(names)
        self._check = f"service:{self._service}"
        self._session: str | None = None
        self._named: set[str] = set()
        self._is_registered = False

    def take(self) -> bool:
        """Take the lock; False while another session holds it."""
        self._destroy_session()
        if self.holder() is not None:
            return False
        self.register()
        self._session = self._create_session()
        if not self.announce():
            self.release_all()
            return False
        self._clear_leftovers()
        return True

    def beat(self) -> bool:
        """Pass the check; False if Consul no longer has it. Works without a leader."""
        try:
            self._client.agent.check.ttl_pass(self._check)
        except MembershipUnreachable as error:
            if error.details["status"] is None:
                raise
            return False
        return True

    def keep(self) -> bool:
        """Check that the lock is held with the current announcement; False if it is lost.

        The first request goes to any server, so that it works during an election. Its reply may be
        stale, so a loss must be confirmed by the leader.
        """
        if self._session is None:
            return False
        if self._is_held("stale"):
            return True
        return self._is_held("consistent") or (self.holder() == self._session and self.announce())

    def announce(self) -> bool:
        """Write the announcement into the lock key if this session holds it or it is free."""
        value = encode(self.announcement)
        return bool(self._client.kv.put(self._key, value, acquire=self._session))

    def register(self) -> None:
        """Register the service with its check, or update it."""
        address = urlsplit(self.announcement.address)
        self._is_registered = True  # before the request, because its reply may be lost
        # Passing initially, because a session cannot be bound to a failing check.
        check = {"Status": "passing", "DeregisterCriticalServiceAfter": _DEREGISTER_AFTER}
        self._client.agent.service.register(
            SERVICE,
            service_id=self._service,
            address=address.hostname,
            port=address.port,
            tags=self._tags,
            check=Check.ttl(f"{CHECK_TTL_S:g}s") | check,
        )

    def holder(self) -> str | None:
        """Return the session that holds the lock; None if it is free."""
        return self._read("consistent").get("Session")

    def holder_address(self) -> str:
        """Return the announced address of the lock holder; empty if unknown."""
        announcement = decode(self._read("consistent").get("Value"))
        return announcement.address if announcement is not None else ""

    def acquire(self, name: str) -> bool:
        """Take a named lock with the same session; False without a session."""
        if self._session is None:
            return False
        key = self._lock_key(name)
        self._named.add(key)  # before the request, because its reply may be lost
        return bool(self._client.kv.put(key, self.announcement.peer, acquire=self._session))

    def release(self, name: str) -> None:
        """Release a named lock."""
        key = self._lock_key(name)
        if key in self._named:
            self._drop(key)
            self._named.discard(key)

    def release_all(self) -> None:
        """Release all locks, and remove the session and the service, if registered."""
        if not self._is_registered:
            return
        for key in (*self._named, self._key):
            self._drop(key)
        self._destroy_session()
        self._client.agent.service.deregister(self._service)
        self._is_registered = False

    def _read(self, consistency: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self._client.kv.get(self._key, consistency=consistency)[1]
        return found or {}

    def _is_held(self, consistency: str) -> bool:
        found = self._read(consistency)
        return found.get("Session") == self._session and found.get("Value") == encode(
            self.announcement
        )

    def _create_session(self) -> str:
        """Create the session as soon as the agent has synced the check to the servers."""
        deadline = time.monotonic() + _SYNC_TIMEOUT_S
        while True:
            try:
                return self._request_session()
            except MembershipUnreachable as error:
                if error.details["status"] is None or time.monotonic() > deadline:
                    raise
            time.sleep(_SYNC_POLL_INTERVAL_S)
            self.beat()

    def _request_session(self) -> str:
        session: str = self._client.session.create(
            name=f"{SERVICE} {self._cluster}/{self.announcement.peer}",
            checks=["serfHealth", self._check],
            lock_delay=0,
            behavior="release",
        )
        return session

    def _destroy_session(self) -> None:
        if self._session is not None:
            self._client.session.destroy(self._session)
        self._session = None
        self._named.clear()

    def _drop(self, key: str) -> None:
        """Delete a lock key, atomically with the check that this session holds it."""
        if self._session is None:
            return
        check = {"KV": {"Verb": "check-session", "Key": key, "Session": self._session}}
        try:
            self._client.txn.put([check, {"KV": {"Verb": "delete", "Key": key}}])
        except MembershipUnreachable as error:
            if error.details["status"] != _CONFLICT:
                raise

    def _clear_leftovers(self) -> None:
        """Deregister the services of crashed runs of this peer.

        A service with a passing check belongs to a process that is trying to take the lock.
        """
        for check in self._client.agent.checks().values():
            if check.get("ServiceTags") == self._tags and check.get("Status") == "critical":
                self._client.agent.service.deregister(check["ServiceID"])

    @property
    def _tags(self) -> list[str]:
        return [f"cluster={self._cluster}", f"peer={self.announcement.peer}"]

    def _lock_key(self, name: str) -> str:
        return f"{folder(self._cluster)}locks/{safe_name(name)}"


def folder(cluster: str) -> str:
    """Return the prefix of a cluster's keys, with a trailing slash."""
    return f"dstash/{safe_name(cluster)}/"
