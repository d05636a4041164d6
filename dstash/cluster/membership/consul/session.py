"""A peer's lock in Consul over time: taken once, then kept by a thread until it is given up.

Consul may go away, elect another leader, or come back knowing nothing; the thread takes the lock
again for as long as it takes. One line is logged when the lock is lost, and one when it is back.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

import structlog

from dstash import threads
from dstash.cluster.membership.consul.lock import CHECK_TTL, SessionLock
from dstash.cluster.topology.announcement import Announcement
from dstash.errors import MembershipUnreachable, PeerIdInUse

BEAT: Final = 0.5
#: How long a lock may outlive its process before we believe in a living holder, in seconds.
PATIENCE: Final = 6.0
#: How long a peer that stops waits for Consul, in seconds, before it leaves its lock to fall.
LAST_PATIENCE: Final = 1.5
_POLL: Final = 0.2
_LONGEST_PAUSE: Final = 2.0

_log = structlog.get_logger("dstash.membership")
_random = random.SystemRandom()


class Lease:
    """Keeps one ``SessionLock``. Thread-safe; ``take`` comes first and once, ``give_up`` last."""

    def __init__(self, lock: SessionLock) -> None:
        self._lock = lock
        self._mutex = threading.Lock()  # guards the hold; beats go past it
        self._sure_until = 0.0
        self._is_lost = False
        self._stop = threading.Event()
        name = f"dstash-lease-{lock.announcement.peer}"
        self._renewer = threads.thread(self._renew, name=name, may_end=self._stop.is_set)
        self._log = _log.bind(peer=lock.announcement.peer)

    @property
    def peer(self) -> str:
        """Whose lock it is."""
        return self._lock.announcement.peer

    @property
    def is_held(self) -> bool:
        """Whether the lock was seen to be ours so lately that it must still be."""
        return time.monotonic() < self._sure_until

    def take(self) -> None:
        """Take the lock, waiting up to ``PATIENCE`` for one that a dead process left to fall.

        Raises:
            PeerIdInUse: it did not fall.
            MembershipUnreachable: Consul does not answer.
        """
        try:
            self._wait_for_lock(time.monotonic() + PATIENCE)
        except BaseException:
            self._let_go()
            raise
        self._log.info("announced")
        self._renewer.start()

    def update(self, announcement: Announcement) -> None:
        """Announce other facts. While Consul is away the thread goes on trying to."""
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
        """Let go of a named lock."""
        with self._mutex:
            self._lock.release(name)

    def give_up(self) -> None:
        """Stop renewing and free everything; what cannot be freed soon falls by itself."""
        self._stop.set()
        self._sure_until = 0.0
        if self._renewer.is_alive():
            self._renewer.join(LAST_PATIENCE)
        if self._renewer.is_alive():  # Consul keeps it waiting, and would do the same to us
            self._log.warning("lock left to fall by itself", reason="Consul does not answer")
        else:
            self._let_go()
        self._log.info("resigned")

    def _wait_for_lock(self, deadline: float) -> None:
        is_waiting = False
        while True:
            beaten = time.monotonic()
            if self._lock.take():
                self._sure_until = beaten + CHECK_TTL
                return
            if beaten > deadline:
                raise PeerIdInUse(self._in_use())
            if not is_waiting:
                is_waiting = True
                self._log.info("waiting for the lock of an earlier run to fall")
            time.sleep(_POLL)

    def _in_use(self) -> str:
        address = self._lock.holder_address()
        where = f" at {address}" if address else ""
        return f"peer id {self.peer!r} is in use by a live process{where}"

    def _let_go(self) -> None:
        self._sure_until = 0.0
        try:
            with self._mutex:
                self._lock.let_go()
        except MembershipUnreachable as error:
            self._log.warning("lock left to fall by itself", reason=str(error))

    def _renew(self) -> None:
        failures = 0
        while not self._stop.wait(_pause(failures)):
            try:
                self._renew_once()
                failures = 0
            except Exception as error:  # whatever Consul answers, this thread goes on
                failures += 1
                self._report_loss(str(error) or repr(error))

    def _renew_once(self) -> None:
        beaten = time.monotonic()
        is_known = self._lock.beat()
        if not self._mutex.acquire(blocking=False):
            return  # somebody waits for the leader in there: the next beat must not
        try:
            self._keep(is_known, beaten)
        finally:
            self._mutex.release()

    def _keep(self, is_known: bool, beaten: float) -> None:
        if not (is_known and self._lock.keep()):
            self._sure_until = 0.0
            self._report_loss("Consul has forgotten it")
            if self._stop.is_set():  # nobody wants it any more
                return
            if not self._lock.take():
                raise PeerIdInUse(self._in_use())
        self._sure_until = beaten + CHECK_TTL
        if self._is_lost:
            self._is_lost = False
            self._log.info("announced again")

    def _report_loss(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._log.warning("lock lost", reason=reason)


def _pause(failures: int) -> float:
    """Return how long to wait: after a failure longer each time, and never in step with others."""
    if failures == 0:
        return BEAT
    return min(_LONGEST_PAUSE, BEAT * 2.0 ** min(failures, 8)) * _random.uniform(0.3, 1.0)
