"""The watcher of the authorised keys: reads the list again when it changes."""

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

#: How often (seconds) the files are checked: a revoked key must be cut off within a second.
_CHECK_INTERVAL_S = 0.4


class KeyListWatcher:
    """The authorised keys as they are now.

    If the list cannot be read or has a mistake, the last valid list stays in force, and the mistake
    is logged.

    Args:
        path: the file or directory.
        admits_plain: see ``Authority``.

    Raises:
        ConfigError: the first list is not valid.
    """

    def __init__(self, path: Path, *, admits_plain: bool) -> None:
        self._path = path
        self._admits_plain = admits_plain
        self._seen = fingerprint(path)
        self.authority = read_authority(path, admits_plain=admits_plain)
        self._publish: Callable[[Authority], None] = lambda authority: None
        self._stop = threading.Event()
        self._look = threading.Event()
        self._thread = threads.thread(self._run, name="key list", may_end=self._stop.is_set)

    def admits(self, key: str) -> bool:
        """Whether a key may connect."""
        return self.authority.admits(key)

    def start(self, publish: Callable[[Authority], None]) -> None:
        """Start the thread, which calls ``publish`` with each new list."""
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
            asked = self._look.wait(_CHECK_INTERVAL_S)
            if self._stop.is_set():
                return
            self._look.clear()
            try:
                self._look_again(asked)
            except Exception:  # this thread must not end: no key could be revoked any more
                _log.exception("cannot read the list of keys")

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
    """How a peer accepts and opens connections: its own keys, and the permissions of others."""

    keys: KeyPair | None
    watcher: KeyListWatcher | None
    security: TransportSecurity


def open_transport(settings: PeerSettings) -> Transport:
    """Read keys and lists.

    Raises:
        ConfigError: a file is not valid, or the list lacks this peer's own key with the role
            ``peer``: no other peer would accept its connections.
    """
    cert_file, key_file, listed = (
        settings.cert_file,
        settings.key_file,
        settings.authorised_keys,
    )
    if (
        cert_file is None or key_file is None or listed is None
    ):  # all or none: checked with the settings
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
