"""The lease of a peer's session lock in Consul: taken once, then renewed by a thread.

Consul may become unavailable, elect another leader, or return without its data; the thread tries
without limit to take the lock again. One line is logged when the lock is lost, and one when it is
held again.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

import structlog

from dstash import threads
from dstash.cluster.membership.consul.lock import CHECK_TTL_S, SessionLock
from dstash.cluster.topology.announcement import Announcement
from dstash.errors import MembershipUnreachable, PeerIdInUse

HEARTBEAT_S: Final = 0.5
#: How long a lock may outlive its process before its holder counts as alive.
TAKE_TIMEOUT_S: Final = 6.0
#: How long a stopping peer waits for Consul before it lets its lock expire.
RELEASE_TIMEOUT_S: Final = 1.5
_POLL_INTERVAL_S: Final = 0.2
_MAX_PAUSE_S: Final = 2.0

_log = structlog.get_logger("dstash.membership")
_random = random.SystemRandom()


class Lease:
    """Renews one ``SessionLock``. Thread-safe; ``take`` is called first, ``release_all`` last."""

    def __init__(self, lock: SessionLock) -> None:
        self._lock = lock
        self._mutex = threading.Lock()  # guards the lock; heartbeats do not wait for it
        self._sure_until = 0.0
        self._is_lost = False
        self._stop = threading.Event()
        name = f"dstash-lease-{lock.announcement.peer}"
        self._renewer = threads.thread(self._renew, name=name, may_end=self._stop.is_set)
        self._log = _log.bind(peer=lock.announcement.peer)

    @property
    def peer(self) -> str:
        """The peer that the lock belongs to."""
        return self._lock.announcement.peer

    @property
    def is_held(self) -> bool:
        """Whether the lock was confirmed so recently that it must still be held."""
        return time.monotonic() < self._sure_until

    def take(self) -> None:
        """Take the lock, waiting up to ``TAKE_TIMEOUT_S`` for that of an ended process to expire.

        Raises:
            PeerIdInUse: the lock did not expire.
            MembershipUnreachable: Consul does not reply.
        """
        try:
            self._wait_for_lock(time.monotonic() + TAKE_TIMEOUT_S)
        except BaseException:
            self._release_lock()
            raise
        self._log.info("announced")
        self._renewer.start()

    def update(self, announcement: Announcement) -> None:
        """Change the announcement. While Consul is unavailable, the thread keeps trying."""
        with self._mutex:
            has_moved = announcement.address != self._lock.announcement.address
            self._lock.announcement = announcement
            if has_moved:
                self._lock.register()
            self._lock.keep()

    def acquire(self, name: str) -> bool:
        """Try to take a named lock; False while this peer does not hold its own."""
        with self._mutex:
            return self._lock.acquire(name)

    def release(self, name: str) -> None:
        """Release a named lock."""
        with self._mutex:
            self._lock.release(name)

    def release_all(self) -> None:
        """Stop renewing and release all locks; locks that cannot be released soon expire."""
        self._stop.set()
        self._sure_until = 0.0
        if self._renewer.is_alive():
            self._renewer.join(RELEASE_TIMEOUT_S)
        if self._renewer.is_alive():  # it waits for Consul, as this call would
            self._log.warning("lock left to expire", reason="Consul does not reply")
        else:
            self._release_lock()
        self._log.info("resigned")

    def _wait_for_lock(self, deadline: float) -> None:
        is_waiting = False
        while True:
            started = time.monotonic()
            if self._lock.take():
                self._sure_until = started + CHECK_TTL_S
                return
            if started > deadline:
                raise PeerIdInUse(self._in_use())
            if not is_waiting:
                is_waiting = True
                self._log.info("waiting for the lock of an earlier run to expire")
            time.sleep(_POLL_INTERVAL_S)

    def _in_use(self) -> str:
        address = self._lock.holder_address()
        where = f" at {address}" if address else ""
        return f"peer id {self.peer!r} is in use by a live process{where}"

    def _release_lock(self) -> None:
        self._sure_until = 0.0
        try:
            with self._mutex:
                self._lock.release_all()
        except MembershipUnreachable as error:
            self._log.warning("lock left to expire", reason=str(error))

    def _renew(self) -> None:
        failures = 0
        while not self._stop.wait(_pause(failures)):
            try:
                self._renew_once()
                failures = 0
            except Exception as error:  # this thread must continue after any reply
                failures += 1
                self._report_loss(str(error) or repr(error))

    def _renew_once(self) -> None:
        started = time.monotonic()
        is_known = self._lock.beat()
        if not self._mutex.acquire(blocking=False):
            return  # another call waits for the leader: the next heartbeat must not wait too
        try:
            self._keep(is_known, started)
        finally:
            self._mutex.release()

    def _keep(self, is_known: bool, started: float) -> None:
        if not (is_known and self._lock.keep()):
            self._sure_until = 0.0
            self._report_loss("Consul has lost it")
            if self._stop.is_set():  # the lock is about to be released
                return
            if not self._lock.take():
                raise PeerIdInUse(self._in_use())
        self._sure_until = started + CHECK_TTL_S
        if self._is_lost:
            self._is_lost = False
            self._log.info("announced again")

    def _report_loss(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._log.warning("lock lost", reason=reason)


def _pause(failures: int) -> float:
    """Return the pause before the next renewal: with backoff and jitter after failures."""
    if failures == 0:
        return HEARTBEAT_S
    return min(_MAX_PAUSE_S, HEARTBEAT_S * 2.0 ** min(failures, 8)) * _random.uniform(0.3, 1.0)
