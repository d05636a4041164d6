"""What holds a peer's lock in Consul: a service with a check, a session, and the lock key.

The chain: the peer's beat passes the TTL check of its service; the session is bound to that check
and to the node's health; the lock key is held by the session. When the process dies the check
falls within ``CHECK_TTL``, the session with it, and the lock is free. (A session's own TTL cannot
be below 10 s and may last twice that.)

Nothing is registered before the lock looks free, and each run of a process has a service id of
its own: a second process with the same peer id never touches what the first one holds.
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
CHECK_TTL: Final = 2.0
_GONE_AFTER: Final = "1m"  # Consul's shortest
_SYNC_PATIENCE: Final = 2.0
_SYNC_POLL: Final = 0.05
_CONFLICT: Final = 409


class SessionLock:
    """The chain of one run of one peer. Takes no decision of its own; not thread-safe.

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
        """Take the lock and build all that holds it; False while another session has it."""
        self._forget_session()
        if self.holder() is not None:
            return False
        self.register()
        self._session = self._create_session()
        if not self.announce():
            self.let_go()
            return False
        self._clear_leftovers()
        return True

    def beat(self) -> bool:
        """Pass the check; False when Consul has forgotten it. Needs no leader."""
        try:
            self._client.agent.check.ttl_pass(self._check)
        except MembershipUnreachable as error:
            if error.details["status"] is None:
                raise
            return False
        return True

    def keep(self) -> bool:
        """See whether the lock is still ours, and says what it should; False when it is lost.

        The first look asks any server, so that it answers through an election too. What it says
        may be old: a loss is believed when the leader confirms it.
        """
        if self._session is None:
            return False
        if self._is_ours("stale"):
            return True
        return self._is_ours("consistent") or (self.holder() == self._session and self.announce())

    def announce(self) -> bool:
        """Write the announcement into the lock key, if it is ours or free."""
        value = encode(self.announcement)
        return bool(self._client.kv.put(self._key, value, acquire=self._session))

    def register(self) -> None:
        """Register the service with its check, or update it."""
        where = urlsplit(self.announcement.address)
        self._is_registered = True  # before the request: its answer may be lost
        # Passing from the start: a session cannot be bound to a failing check.
        check = {"Status": "passing", "DeregisterCriticalServiceAfter": _GONE_AFTER}
        self._client.agent.service.register(
            SERVICE,
            service_id=self._service,
            address=where.hostname,
            port=where.port,
            tags=self._tags,
            check=Check.ttl(f"{CHECK_TTL:g}s") | check,
        )

    def holder(self) -> str | None:
        """Return the session that has the lock."""
        return self._read("consistent").get("Session")

    def holder_address(self) -> str:
        """Return where the peer that has the lock says it is; empty when it does not say."""
        announcement = decode(self._read("consistent").get("Value"))
        return announcement.address if announcement is not None else ""

    def acquire(self, name: str) -> bool:
        """Take a named lock by the same session, which there must be."""
        if self._session is None:
            return False
        key = self._lock_key(name)
        self._named.add(key)  # before the request: its answer may be lost
        return bool(self._client.kv.put(key, self.announcement.peer, acquire=self._session))

    def release(self, name: str) -> None:
        """Let go of a named lock."""
        key = self._lock_key(name)
        if key in self._named:
            self._drop(key)
            self._named.discard(key)

    def let_go(self) -> None:
        """Release all locks, and take the session and the service away, if they are there."""
        if not self._is_registered:
            return
        for key in (*self._named, self._key):
            self._drop(key)
        self._forget_session()
        self._client.agent.service.deregister(self._service)
        self._is_registered = False

    def _read(self, consistency: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self._client.kv.get(self._key, consistency=consistency)[1]
        return found or {}

    def _is_ours(self, consistency: str) -> bool:
        found = self._read(consistency)
        return found.get("Session") == self._session and found.get("Value") == encode(
            self.announcement
        )

    def _create_session(self) -> str:
        """Create the session, as soon as the agent has told the servers of the check."""
        deadline = time.monotonic() + _SYNC_PATIENCE
        while True:
            try:
                return self._ask_for_session()
            except MembershipUnreachable as error:
                if error.details["status"] is None or time.monotonic() > deadline:
                    raise
            time.sleep(_SYNC_POLL)
            self.beat()

    def _ask_for_session(self) -> str:
        session: str = self._client.session.create(
            name=f"{SERVICE} {self._cluster}/{self.announcement.peer}",
            checks=["serfHealth", self._check],
            lock_delay=0,
            behavior="release",
        )
        return session

    def _forget_session(self) -> None:
        if self._session is not None:
            self._client.session.destroy(self._session)
        self._session = None
        self._named.clear()

    def _drop(self, key: str) -> None:
        """Delete a lock key, in one step with the proof that it is ours."""
        if self._session is None:
            return
        proof = {"KV": {"Verb": "check-session", "Key": key, "Session": self._session}}
        try:
            self._client.txn.put([proof, {"KV": {"Verb": "delete", "Key": key}}])
        except MembershipUnreachable as error:
            if error.details["status"] != _CONFLICT:
                raise

    def _clear_leftovers(self) -> None:
        """Deregister what crashed runs of this peer left here.

        One that does not fail is of a process that tries for the lock now: it will see to itself.
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
    """Return the prefix of a cluster's keys, with the slash at its end."""
    return f"dstash/{safe_name(cluster)}/"
