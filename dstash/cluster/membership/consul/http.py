"""python-consul with what it lacks: timeouts, a token outside the URL, one kind of error.

As it comes, a frozen agent hangs its caller for ever, the ACL token travels in the URL (and so
into every proxy's log), and callers see the errors of three libraries. All requests pass through
``ConsulHttp._send``, and that is where each of these is put right.
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

from dstash.errors import ConfigError, MembershipUnreachable

CONNECT_TIMEOUT: Final = 2.0
READ_TIMEOUT: Final = 5.0

Params = list[tuple[str, Any]] | None
Verify = bool | str
Certificate = str | tuple[str, str] | None


class ConsulClient(base.Consul):  # type: ignore[misc]  # the base class has no annotations
    """The parts of Consul that a membership uses: ``kv``, ``agent``, ``session``, ``txn``.

    Thread-safe. Every call raises ``MembershipUnreachable`` when Consul does not answer in time,
    or answers with an error; ``facts['status']`` is then the HTTP status, if there was one.

    Args:
        url: ``http://host:port`` or ``https://...``, with or without a path.
        token: the ACL token, sent as a header.
        ca_file: PEM file of the authorities to trust in place of the usual ones.
        cert_file: PEM file of the client's certificate; ``key_file`` that of its key, unless
            they are one file.
        patience: seconds for an answer, beyond what a blocking query waits.

    Raises:
        ConfigError: the URL is not one, or a file is not there.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        patience: float = READ_TIMEOUT,
    ) -> None:
        # The base class's own constructor is passed over: it lets CONSUL_HTTP_* in the
        # environment overrule its arguments, while our settings have an order of their own.
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
        """Break off the requests that wait, and close all connections. No call may follow."""
        self.http.close()


class ConsulHttp(base.HTTPClient):  # type: ignore[misc]  # the base class has no annotations
    """One keep-alive HTTP session with one agent."""

    def __init__(
        self, url: str, token: str | None, verify: Verify, cert: Certificate, patience: float
    ) -> None:
        super().__init__(scheme=urlsplit(url).scheme, verify=verify, cert=cert)
        self.base_uri = url
        self.patience = patience  # of requests that begin from now on
        self._connections = _Connections()
        self._session = requests.Session()
        self._session.trust_env = False  # no web proxy, and no password out of ~/.netrc
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
                    min(CONNECT_TIMEOUT, self.patience),
                    read_timeout(params, self.patience),
                ),
                verify=self.verify,
                cert=self.cert,
                allow_redirects=False,  # the token is for this address alone
            )
            status = response.status_code
            response.encoding = "utf-8"
            return callback(base.Response(status, response.headers, response.text))
        except (requests.RequestException, base.ConsulException, OSError) as error:
            reason = _reason(error)
        except (ValueError, KeyError, TypeError):
            reason = f"the answer (HTTP status {status}) is not one of Consul's"
        raise MembershipUnreachable(f"Consul at {self.base_uri}: {reason}", status=status)


class _Connections:
    """The open connections: shut down, they end the requests that other threads wait in."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._is_shut = False

    def add(self, connection: HTTPConnection) -> None:
        """Keep account of a connection that was made; after ``shut_down`` it is shut at once."""
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
        with suppress(OSError):  # the other side was faster
            connection.sock.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Keeps account of the connections that it makes."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        made = self._connections

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                made.add(self)

        class Tls(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                made.add(self)

        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": Tls}),
        }


def read_timeout(params: Params, patience: float = READ_TIMEOUT) -> float:
    """Return how long an answer may take, in seconds: ``patience``, if it is not held back.

    A blocking query is answered after its wait, to which Consul adds up to a sixteenth.
    """
    wait = dict(params or ()).get("wait", "0s")
    return float(wait.removesuffix("s")) * 17 / 16 + patience


def checked_url(url: str) -> str:
    """Return the URL of an agent without a slash at its end; ``ConfigError`` when it is not one."""
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"consul URL {url!r} is not like http://127.0.0.1:8500")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError("consul URL must hold no user, password or query: give the token apart")
    return full.rstrip("/")


def _certificate(cert: str | Path | None, key: str | Path | None) -> Certificate:
    if cert is None:
        if key is not None:
            raise ConfigError(f"a key file ({key}) needs a certificate file beside it")
        return None
    return _file(cert) if key is None else (_file(cert), _file(key))


def _file(path: str | Path) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}")
    return str(path)


def _reason(error: Exception) -> str:
    """Say in a few words what happened, with nothing of the request in it."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, base.ConsulException):
        return " ".join(str(error).split())[:200] or type(error).__name__
    return _cause(error).strerror or type(_cause(error)).__name__


def _cause(error: BaseException) -> OSError:
    """Dig out the operating system's error: requests wraps urllib3's, which wraps that."""
    inner = getattr(error, "reason", None) or next(
        (one for one in (*error.args, error.__cause__, error.__context__) if _is_error(one)), None
    )
    if inner is not None and _is_error(inner) and inner is not error:
        return _cause(inner)
    return error if isinstance(error, OSError) else OSError(0, str(error))


def _is_error(value: object) -> bool:
    return isinstance(value, BaseException)
