"""Watches the list of authorised keys, and hands on each new one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from dstash import threads
from dstash.cluster.topology.topology import TransportSecurity
from dstash.config import PeerSettings
from dstash.errors import ConfigError
from dstash.peer.admission.authority import Authority, fingerprint, read_authority
from dstash.wire.curve import KeyPair

_log = structlog.get_logger("dstash.peer")

#: How often (seconds) the files are looked at: a revoked key must be out within a second.
_INTERVAL = 0.4


class KeyListWatcher:
    """Knows the authorised keys as they are now.

    A list that cannot be read, or has a mistake in it, changes nothing: the last good one stays
    in force, and the log says so.

    Args:
        path: the file or directory.
        admits_plain: see ``Authority``.

    Raises:
        ConfigError: there is no good list to begin with.
    """

    def __init__(self, path: Path, *, admits_plain: bool) -> None:
        self._path = path
        self._admits_plain = admits_plain
        self._seen = fingerprint(path)
        self.authority = read_authority(path, admits_plain=admits_plain)
        self._publish: Callable[[Authority], None] = lambda authority: None
        self._stop = threading.Event()
        self._look = threading.Event()
        self._thread = threads.thread(self._run, name="guard", may_end=self._stop.is_set)

    def admits(self, key: str) -> bool:
        """Whether a key may connect."""
        return self.authority.admits(key)

    def start(self, publish: Callable[[Authority], None]) -> None:
        """Watch in the background; ``publish`` is called with each new list, on this thread."""
        self._publish = publish
        self._thread.start()

    def reload(self) -> None:
        """Read the list now, changed or not. Signal-safe."""
        self._look.set()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._look.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            asked = self._look.wait(_INTERVAL)
            if self._stop.is_set():
                return
            self._look.clear()
            try:
                self._look_again(asked)
            except Exception:  # this thread must not end: nobody could be shut out any more
                _log.exception("could not look at the list of keys")

    def _look_again(self, asked: bool) -> None:
        now = fingerprint(self._path)
        if asked or now != self._seen:
            self._seen = now
            self._take()

    def _take(self) -> None:
        try:
            fresh = read_authority(self._path, admits_plain=self._admits_plain)
        except ConfigError as error:
            _log.error("authorised keys not changed: the list has a mistake", error=str(error))
            return
        self.authority = fresh
        self._publish(fresh)
        _log.info("authorised keys read", keys=len(fresh))


class Transport(NamedTuple):
    """How a peer takes and makes connections: its own keys, and who may do what."""

    keys: KeyPair | None
    watcher: KeyListWatcher | None
    security: TransportSecurity


def open_transport(settings: PeerSettings) -> Transport:
    """Read keys and lists.

    Raises:
        ConfigError: a file is not right, or the list does not name this peer's own key as that of
            a peer: no other peer would talk to it.
    """
    cert_file, key_file, listed = (
        settings.cert_file,
        settings.key_file,
        settings.authorised_keys,
    )
    if (
        cert_file is None or key_file is None or listed is None
    ):  # all or none: the config sees to it
        return Transport(None, None, TransportSecurity.OPEN)
    keys = KeyPair.load(cert_file, key_file)
    closing = settings.plain_port is not None
    watcher = KeyListWatcher(listed, admits_plain=closing)
    if not watcher.authority.is_peer(keys.public):
        raise ConfigError(
            f"authorised_keys {listed} must list this peer's own key: {keys.public} peer"
        )
    return Transport(
        keys, watcher, TransportSecurity.CLOSING if closing else TransportSecurity.CLOSED
    )
