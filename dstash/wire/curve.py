"""CURVE keys, the socket options that apply them, and the ZAP handler that checks public keys.

CURVE (ZeroMQ RFC 26, after CurveCP) encrypts a connection and proves to each side that the other
has the secret key of its public key. The ZAP handler (ZeroMQ RFC 27) decides whether a public key
may connect. Without a handler libzmq accepts every key unless ``ZAP_ENFORCE_DOMAIN`` is set;
``listen_with`` sets it, so that a missing or failed handler refuses all connections.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import zmq
from zmq.utils import z85

from dstash import events, threads
from dstash.config.fields import is_key
from dstash.errors import ConfigError
from dstash.logger import Logger

_log = Logger("dstash.curve")

#: The only domain that connections are authenticated for.
ZAP_DOMAIN: Final = b"dstash"

_LINE: Final = re.compile(r'(public-key|secret-key) = "([^"]*)"')
_HEADER: Final = """# A {kind} key of dstash, for CURVE. {advice}
curve
"""
_ENDPOINT: Final = "inproc://zeromq.zap.01"  # fixed by RFC 27
#: Seconds between two log lines about refused connections: anyone can cause them.
_LOG_INTERVAL_S: Final = 5.0


@dataclass(frozen=True)
class KeyPair:
    """A public key and its secret key. The secret key does not appear in the repr."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """Return a new pair, from the random source of the operating system.

        The public key begins with a letter or a digit, so that it cannot be taken for a comment or
        an option.
        """
        while True:
            public, secret = zmq.curve_keypair()
            if public[:1].isalnum():
                return cls(public.decode(), secret.decode())

    @classmethod
    def load(cls, cert_file: Path, key_file: Path) -> KeyPair:
        """Read a pair from its two files.

        Raises:
            ConfigError: a file is missing or malformed, other users can read the secret key, or
                the two keys do not match.
        """
        public, secret = _read(cert_file, "public-key"), _read(key_file, "secret-key", secret=True)
        if zmq.curve_public(secret.encode()).decode() != public:
            raise ConfigError(f"{key_file} is not the secret key of {cert_file}")
        return cls(public, secret)

    def save(self, cert_file: Path, key_file: Path) -> None:
        """Write two new files. Only the owner can read the secret key. No file is overwritten.

        Raises:
            ConfigError: a file exists already, or cannot be written.
        """
        secret_head = _HEADER.format(kind="secret", advice="Keep it private.")
        public_head = _HEADER.format(kind="public", advice="It may be shared.")
        public_line = f'    public-key = "{self.public}"\n'
        _write(key_file, f'{secret_head}{public_line}    secret-key = "{self.secret}"\n', 0o600)
        _write(cert_file, f"{public_head}{public_line}", 0o644)


def load_public(file: Path) -> str:
    """Return the public key in a file; raises ``ConfigError`` if the file has none."""
    return _read(file, "public-key")


def _read(file: Path, wanted: str, *, secret: bool = False) -> str:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(10_000).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not a key file") from None
    if secret and mode & 0o077 and os.name == "posix":  # other systems ignore the mode
        raise ConfigError(
            f"{file} is a secret key that other users can read (mode {mode:03o}); "
            f"run: chmod 600 {file}"
        )
    found = [match[2] for match in _LINE.finditer(text) if match[1] == wanted]
    if len(found) != 1 or not is_key(found[0]):
        raise ConfigError(f"{file} has no valid {wanted}; create a pair with: dstash cert new")
    return found[0]


def _write(file: Path, text: str, mode: int) -> None:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(f"{file} exists already; key files are never overwritten") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    try:
        with open(handle, "w") as opened:
            opened.write(text)
    except OSError as error:  # a full disk: half a key would prevent the next try
        file.unlink(missing_ok=True)
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None


def listen_with(socket: zmq.Socket[bytes], keys: KeyPair) -> None:
    """Accept only CURVE connections on a socket that is bound next."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it and without a handler every key is accepted


def connect_with(socket: zmq.Socket[bytes], keys: KeyPair, server_key: str) -> None:
    """Use CURVE on a socket that is connected next, to a server that has ``server_key``."""
    socket.set(zmq.CURVE_SERVERKEY, server_key.encode())
    socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())


class SocketFactory(Protocol):
    """What the ZAP handler needs of a context."""

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """Open a socket."""
        ...


class ZapHandler:
    """Answers the ZAP requests of one context, on its own thread, until the context is closed.

    Args:
        context: the context of the routers. Create the handler before they bind.
        admits: returns whether a public key may connect; called on the handler's thread.
    """

    def __init__(self, context: SocketFactory, admits: Callable[[str], bool]) -> None:
        self._admits = admits
        self._socket = context.socket(zmq.REP)
        self._socket.bind(_ENDPOINT)
        self._next_log_line = 0.0
        self.refused = 0
        self._thread = threads.thread(self._run, name="zap-handler", may_end=lambda: True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the handler runs; while it does not, every connection is refused."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            return
        finally:
            self._socket.close(linger=0)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        # version, request id, domain, address, routing id, mechanism, credentials...
        number = request[1] if len(request) > 1 else b""
        try:
            key = _key_in(request)
            is_admitted = key is not None and self._admits(key)
        except Exception:
            _log.exception("cannot check a public key; connection refused")
            key, is_admitted = None, False
        if is_admitted and key is not None:
            return [b"1.0", number, b"200", b"OK", key.encode(), b""]
        self._log_refusal(request, key)
        return [b"1.0", number, b"400", b"this key is not authorised", b"", b""]

    def _log_refusal(self, request: list[bytes], key: str | None) -> None:
        self.refused += 1
        now = time.monotonic()
        if now >= self._next_log_line:
            self._next_log_line = now + _LOG_INTERVAL_S
            address = request[3].decode("ascii", "replace") if len(request) > 3 else ""
            _log.warning(events.KEY_REFUSED, key=key, address=address, refused=self.refused)


def _key_in(request: list[bytes]) -> str | None:
    if len(request) != 7:
        return None
    version, _, domain, _, _, mechanism, credentials = request
    is_known = (version, domain, mechanism) == (b"1.0", ZAP_DOMAIN, b"CURVE")
    return z85.encode(credentials).decode() if is_known and len(credentials) == 32 else None
