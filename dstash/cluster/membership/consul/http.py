"""A Consul client on python-consul, with timeouts, a token header, and one kind of error.

In python-consul a frozen agent blocks its caller for ever, the ACL token is part of the URL (and so
of every proxy's log), and callers get the errors of three libraries. All requests pass through
``ConsulHttp._send``, which corrects each of these.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from consul import base
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from dstash.config.hosts import read_url
from dstash.errors import ConfigError, MembershipUnreachable

CONNECT_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 5.0

Params = list[tuple[str, Any]] | None
Verify = bool | str
Certificate = str | tuple[str, str] | None


class ConsulClient(base.Consul):  # type: ignore[misc]  # the base class has no annotations
    """The parts of Consul that a membership uses: ``kv``, ``agent``, ``session``, ``txn``.

    Thread-safe. Every call raises ``MembershipUnreachable`` if Consul does not reply in time or
    replies with an error; ``details['status']`` is then the HTTP status, if it is Consul's.

    Args:
        url: ``http://host:port`` or ``https://...``, with or without a path.
        token: the ACL token, sent as a header.
        ca_file: PEM file of the authorities to trust instead of the default authorities.
        cert_file: PEM file of the client certificate.
        key_file: PEM file of its key, unless ``cert_file`` has both.
        patience: seconds to wait for a reply, in addition to the wait of a blocking query.

    Raises:
        ConfigError: the URL is invalid, or a file is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        patience: float = READ_TIMEOUT_S,
    ) -> None:
        # The constructor of the base class is not called, because it lets CONSUL_HTTP_* in the
        # environment override its arguments, against the precedence of dstash's settings.
        verify: Verify = True if ca_file is None else _file(ca_file)
        cert = _certificate(cert_file, key_file)
        self.http = ConsulHttp(checked_url(url), token, verify, cert, patience)
        self.token = None  # the base class would put it into URLs
        self.scheme = self.http.scheme
        self.dc = None
        self.consistency = "default"
        self.kv = base.Consul.KV(self)
        self.txn = base.Consul.Txn(self)
        self.agent = base.Consul.Agent(self)
        self.session = base.Consul.Session(self)

    def close(self) -> None:
        """Abort waiting requests and close all connections. No call may follow."""
        self.http.close()


class ConsulHttp(base.HTTPClient):  # type: ignore[misc]  # the base class has no annotations
    """One keep-alive HTTP session with one agent."""

    def __init__(
        self, url: str, token: str | None, verify: Verify, cert: Certificate, patience: float
    ) -> None:
        super().__init__(scheme=urlsplit(url).scheme, verify=verify, cert=cert)
        self.base_uri = url
        self.patience = patience  # for requests that begin from now on
        self._connections = _Connections()
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no password from the environment
        self._session.mount(url, _Adapter(self._connections))
        if token:
            self._session.headers["X-Consul-Token"] = token

    def get(self, callback: Callable[[Any], Any], path: str, params: Params = None) -> Any:
        return self._send("GET", callback, path, params)

    def put(
        self, callback: Callable[[Any], Any], path: str, params: Params = None, data: Any = ""
    ) -> Any:
        return self._send("PUT", callback, path, params, data)

    def delete(self, callback: Callable[[Any], Any], path: str, params: Params = None) -> Any:
        return self._send("DELETE", callback, path, params)

    def post(
        self, callback: Callable[[Any], Any], path: str, params: Params = None, data: Any = ""
    ) -> Any:
        return self._send("POST", callback, path, params, data)

    def close(self) -> None:
        self._connections.shut_down()
        self._session.close()

    def _send(
        self,
        method: str,
        callback: Callable[[Any], Any],
        path: str,
        params: Params,
        data: Any = None,
    ) -> Any:
        status = None
        try:
            response = self._session.request(
                method,
                self.uri(path, params),
                data=data,
                timeout=(
                    min(CONNECT_TIMEOUT_S, self.patience),
                    read_timeout(params, self.patience),
                ),
                verify=self.verify,
                cert=self.cert,
                allow_redirects=False,  # the token is only for this address
            )
            status = response.status_code
            response.encoding = "utf-8"
            return callback(base.Response(status, response.headers, response.text))
        except (requests.RequestException, base.ConsulException, OSError) as error:
            reason = _reason(error)
        except (ValueError, KeyError, TypeError):
            # A proxy answers for it: so Consul is out of reach, and has refused nothing.
            reason, status = f"the reply (HTTP status {status}) is not from Consul", None
        raise MembershipUnreachable(f"Consul at {self.base_uri}: {reason}", status=status)


class _Connections:
    """The open connections. Shutting them down aborts the requests of other threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._is_shut = False

    def add(self, connection: HTTPConnection) -> None:
        """Track a new connection; after ``shut_down`` it is shut down at once."""
        with self._mutex:
            self._open.add(connection)
            if self._is_shut:
                _shut(connection)

    def shut_down(self) -> None:
        with self._mutex:
            self._is_shut = True
            for connection in self._open:
                _shut(connection)


def _shut(connection: HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):  # closed by the other side already
            connection.sock.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Tracks the connections that it creates."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        connections = self._connections

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                connections.add(self)

        class Tls(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                connections.add(self)

        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": Tls}),
        }


def read_timeout(params: Params, patience: float = READ_TIMEOUT_S) -> float:
    """Return the timeout of a reply in seconds: ``patience``, plus the wait of a blocking query.

    Consul adds up to one sixteenth to that wait.
    """
    wait = dict(params or ()).get("wait", "0s")
    return float(wait.removesuffix("s")) * 17 / 16 + patience


def checked_url(url: str) -> str:
    """Return the URL of an agent without a trailing slash; ``ConfigError`` if it is invalid."""
    try:
        full = read_url(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise ConfigError(f"invalid consul URL {url!r}; {error}") from None
    try:
        parts = urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"invalid consul URL {url!r}; expected a URL like http://127.0.0.1:8500")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "consul URL must not have a user, password or query; set the token separately"
        )
    return full.rstrip("/")


def _certificate(cert: str | Path | None, key: str | Path | None) -> Certificate:
    if cert is None:
        if key is not None:
            raise ConfigError(f"key file {key} needs a certificate file too")
        return None
    return _file(cert) if key is None else (_file(cert), _file(key))


def _file(path: str | Path) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"no file {path}")
    return str(path)


def _reason(error: Exception) -> str:
    """Return a short description of an error, without any part of the request."""
    if isinstance(error, requests.ConnectTimeout):
        return "connection timed out"
    if isinstance(error, requests.Timeout):
        return "no reply in time"
    if isinstance(error, base.ConsulException):
        return " ".join(str(error).split())[:200] or type(error).__name__
    return _cause(error).strerror or type(_cause(error)).__name__


def _cause(error: BaseException) -> OSError:
    """Return the operating system's error, which urllib3 and requests have wrapped."""
    inner = getattr(error, "reason", None) or next(
        (cause for cause in (*error.args, error.__cause__, error.__context__) if _is_error(cause)),
        None,
    )
    if inner is not None and _is_error(inner) and inner is not error:
        return _cause(inner)
    return error if isinstance(error, OSError) else OSError(0, str(error))


def _is_error(value: object) -> bool:
    return isinstance(value, BaseException)
