"""Keys, and the door: CURVE for every connection, and the handler that says who may come in.

CURVE (ZeroMQ RFC 26, after CurveCP) encrypts, and proves to each side that the other holds the
secret key of its public one. Whether a key is welcome is for the ZAP handler (ZeroMQ RFC 27) to
say. Without a handler libzmq lets any key in, unless ``ZAP_ENFORCE_DOMAIN`` is set: ``Router``
sets it, so that nobody comes in when the handler is missing or has died.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import zmq
from zmq.utils import z85

from dstash import threads
from dstash.config.fields import is_key
from dstash.errors import ConfigError
from dstash.wire.sockets import ZAP_DOMAIN, Context

_log = structlog.get_logger("dstash.door")

_LINE: Final = re.compile(r'(public-key|secret-key) = "([^"]*)"')
_HEADER: Final = """# A {what} key of dstash, for CURVE. {advice}
curve
"""
_ENDPOINT: Final = "inproc://zeromq.zap.01"  # fixed by RFC 27
#: Refused connections are told in the log once in so many seconds: anyone can make them.
_QUIET: Final = 5.0


@dataclass(frozen=True)
class KeyPair:
    """A public key and the secret one that belongs to it; the secret does not show in a repr."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """Return a new pair, from the system's source of randomness.

        The public key begins with a letter or a digit, so that nobody takes it for a comment or
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
            ConfigError: a file is not what it should be, others can read the secret one, or the
                two do not belong together.
        """
        public, secret = _read(cert_file, "public-key"), _read(key_file, "secret-key", secret=True)
        if zmq.curve_public(secret.encode()).decode() != public:
            raise ConfigError(f"{key_file} is not the secret key of {cert_file}")
        return cls(public, secret)

    def save(self, cert_file: Path, key_file: Path) -> None:
        """Write two new files; the secret one for its owner alone. Nothing is overwritten.

        Raises:
            ConfigError: a file is there already, or cannot be written.
        """
        secret_head = _HEADER.format(what="secret", advice="Show it to nobody.")
        public_head = _HEADER.format(what="public", advice="Anybody may know it.")
        public_line = f'    public-key = "{self.public}"\n'
        _write(key_file, f'{secret_head}{public_line}    secret-key = "{self.secret}"\n', 0o600)
        _write(cert_file, f"{public_head}{public_line}", 0o644)


def load_public(file: Path) -> str:
    """Read a public key; raises ``ConfigError`` when there is none."""
    return _read(file, "public-key")


def _read(file: Path, wanted: str, *, secret: bool = False) -> str:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(10_000).decode()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not a key file") from None
    if secret and mode & 0o077:
        raise ConfigError(
            f"{file} is a secret key that others may read (mode {mode:03o}); do: chmod 600 {file}"
        )
    found = [match[2] for match in _LINE.finditer(text) if match[1] == wanted]
    if len(found) != 1 or not is_key(found[0]):
        raise ConfigError(f"{file} holds no {wanted}; make a pair with: dstash cert new")
    return found[0]


def _write(file: Path, text: str, mode: int) -> None:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(handle, "w") as opened:
            opened.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} is there already; a key is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None


class ZapHandler:
    """Answers ZAP requests of one context on a thread of its own, until the context is closed.

    Args:
        context: the ZeroMQ threads whose routers it guards; it must be made before they bind.
        admits: whether a public key may connect; called on the thread.
    """

    def __init__(self, context: Context, admits: Callable[[str], bool]) -> None:
        self._admits = admits
        self._socket = context.socket(zmq.REP)
        self._socket.bind(_ENDPOINT)
        self._next_word = 0.0
        self.refused = 0
        self._thread = threads.thread(self._run, name="doorkeeper", may_end=lambda: True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether anybody is at the door; nobody comes in when not."""
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
            welcome = key is not None and self._admits(key)
        except Exception:
            _log.exception("cannot tell whether a key is welcome; refused")
            key, welcome = None, False
        if welcome and key is not None:
            return [b"1.0", number, b"200", b"OK", key.encode(), b""]
        self._tell(request, key)
        return [b"1.0", number, b"400", b"this key is not authorised", b"", b""]

    def _tell(self, request: list[bytes], key: str | None) -> None:
        self.refused += 1
        now = time.monotonic()
        if now >= self._next_word:
            self._next_word = now + _QUIET
            address = request[3].decode("ascii", "replace") if len(request) > 3 else ""
            _log.warning("connection refused", key=key, address=address, refused=self.refused)


def _key_in(request: list[bytes]) -> str | None:
    if len(request) != 7:
        return None
    version, _, domain, _, _, mechanism, credentials = request
    known = (version, domain, mechanism) == (b"1.0", ZAP_DOMAIN, b"CURVE")
    return z85.encode(credentials).decode() if known and len(credentials) == 32 else None
