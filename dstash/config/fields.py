"""The types of settings, each with the rule that reads its values."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from dstash.config import hosts
from dstash.config.rules import Number, listing, text

if TYPE_CHECKING:
    from urllib.parse import SplitResult

MAX_NAME_CHARS: Final = 64
_KEY_LENGTH: Final = 40
_Z85: Final = {
    char: value
    for value, char in enumerate(
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    )
}


class Conflict(ValueError):
    """Two settings contradict each other; ``key`` is the setting to change."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key = key


class Secret:
    """A text that is not printed. ``reveal`` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "*" * 10


def _name(text: str) -> str:
    # Names are used in file names, Consul keys and URLs.
    legal = 1 <= len(text) <= MAX_NAME_CHARS and text.isprintable() and text not in (".", "..")
    if not legal or any(char in "/\\" or char.isspace() for char in text):
        raise ValueError(
            f"allowed are 1 to {MAX_NAME_CHARS} printable characters, no slash, no space"
        )
    return text


def _host(text: str) -> str:
    host = "*" if text == "*" else hosts.read_host(text)
    if host is None:
        raise ValueError("allowed is an address or a host name of this machine, without a port")
    return host


def _advertise(text: str) -> str:
    place = hosts.read_place(text)
    if place is None:
        raise ValueError("allowed is host or host:port, with a port from 1 to 65535")
    host, port = place
    return host if port is None else f"{host}:{port}"


def _endpoint(text: str) -> str:
    place = hosts.read_place(text.strip().removeprefix("tcp://"))
    if place is None or place[1] is None:
        raise ValueError("allowed is tcp://host:port, with a port from 1 to 65535")
    return f"tcp://{place[0]}:{place[1]}"


def is_key(text: str) -> bool:
    """Return whether ``text`` is a CURVE key: 32 bytes as 40 characters (Z85, ZeroMQ RFC 32)."""
    if len(text) != _KEY_LENGTH or not set(text) <= _Z85.keys():
        return False
    values = [_Z85[char] for char in text]
    numbers = [
        functools.reduce(lambda number, value: number * 85 + value, values[i : i + 5])
        for i in range(0, _KEY_LENGTH, 5)
    ]
    return max(numbers) < 1 << 32


def _key(text: str) -> str:
    if not is_key(text.strip()):
        raise ValueError("allowed are public keys of 40 characters, as dstash cert new prints them")
    return text.strip()


def _url(raw: str) -> str:
    text = hosts.read_url(raw)
    parts = _web(text)
    if parts is None or parts.path.strip("/"):
        raise ValueError("allowed is http://host:port or https://host:port")
    if parts.username or parts.password:
        raise ValueError("a URL appears in logs; set the token with consul_token_file instead")
    return text.rstrip("/")


def _collector_url(raw: str) -> str:
    text = hosts.read_url(raw)
    parts = _web(text)
    if parts is None:
        raise ValueError("allowed is http://host:port or https://host:port, optionally with a path")
    if parts.username or parts.password:
        raise ValueError("a URL appears in logs; set OTEL_EXPORTER_OTLP_HEADERS instead")
    return text.rstrip("/")


def _web(text: str) -> SplitResult | None:
    """Return the parts of an http or https URL without query and fragment, else None."""
    from urllib.parse import urlsplit  # most clients have no URL

    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number
        return None
    return parts if good and not parts.query and not parts.fragment else None


def _path(raw: Any) -> Path:
    """Read a path. A relative one is resolved now: the working directory may change later."""
    if not isinstance(raw, str | os.PathLike) or raw == "":  # Path("") is the working directory
        raise ValueError("allowed is a path")
    try:
        path = Path(raw).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return path if path.is_absolute() else working_dir() / path


def working_dir() -> Path:
    """Return the working directory; a relative path to it if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def _secret(raw: Any) -> Secret:
    if isinstance(raw, str):
        return Secret(raw)
    if isinstance(raw, Secret):
        return raw
    raise ValueError("allowed is a text")


Name = Annotated[str, text(_name)]
Host = Annotated[str, text(_host)]
Advertise = Annotated[str, text(_advertise)]
#: A list, or a text with commas.
Endpoints = Annotated[list[str], listing(_endpoint)]
#: One key or several, as a list or as a text with commas.
PublicKeys = Annotated[list[str], listing(_key)]
Url = Annotated[str, text(_url)]
CollectorUrl = Annotated[str, text(_collector_url)]
File = Annotated[Path, _path]
Token = Annotated[Secret, _secret]
Port = Annotated[int, Number(int, least=0, most=65_535)]
Seconds = Annotated[float, Number(float, above=0, most=100 * 31_557_600)]
