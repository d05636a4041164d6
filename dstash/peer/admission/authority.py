"""The authorised keys: their roles, their indexes, and the role that each request needs.

The file has one line per key: the public key, its role, and for ``read`` and ``write`` the indexes
that it is limited to, if any. ``#`` begins a comment line::

    Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID peer
    rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7 write users sessions

A line of another form makes the whole list invalid.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dstash.config.fields import is_key
from dstash.errors import ConfigError, LimitError, Unauthorised
from dstash.limits import check_index
from dstash.types import Word
from dstash.wire.messages import (
    AdminRequest,
    Apply,
    Compact,
    Count,
    Delete,
    DropRequest,
    Fetch,
    Hello,
    IndexesRequest,
    IndexSettingsRequest,
    Lookup,
    Ping,
    Put,
    Repair,
    Scan,
    ScanKeys,
    StatusRequest,
    TopologyRequest,
)
from dstash.wire.registers import Change, Settle
from dstash.wire.registers.consensus import (
    Accept,
    Prepare,
    PromisesRequest,
    RegisterFloorsRequest,
)
from dstash.wire.replication import (
    BucketsRequest,
    ClockRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Hint,
    HistoryRequest,
    Pull,
    Push,
    ReleaseFloor,
    SeenRequest,
    SetHorizon,
    VersionsRequest,
)
from dstash.wire.shapes import Message

#: The largest list of keys.
_MAX_BYTES: Final = 16 * 1024 * 1024


class Role(Word):
    """The permissions of a key. ``admin`` includes ``write``, which includes ``read``."""

    PEER = "peer"
    ADMIN = "admin"
    WRITE = "write"
    READ = "read"


_NOT_PEER: Final = frozenset({Role.READ, Role.WRITE, Role.ADMIN})
_ALL_ROLES: Final = frozenset(Role)
_WRITERS: Final = frozenset({Role.WRITE, Role.ADMIN})
_PEERS: Final = frozenset({Role.PEER})

#: The roles that may send a message. No role may send any other message.
_NEEDED: Final[Mapping[type[Message], frozenset[Role]]] = {
    **dict.fromkeys((Hello, Ping, TopologyRequest, StatusRequest), _ALL_ROLES),
    **dict.fromkeys((Lookup, Fetch, Scan, ScanKeys, Count, IndexesRequest, Settle), _NOT_PEER),
    **dict.fromkeys((Put, Delete, Apply, Hint, DropRequest, Change), _WRITERS),
    **dict.fromkeys((AdminRequest, IndexSettingsRequest, Repair, Compact), frozenset({Role.ADMIN})),
    # The requests of a backup.
    **dict.fromkeys((DigestsRequest, CopyRequest), _PEERS | {Role.ADMIN}),
    **dict.fromkeys(
        (
            *(Push, Pull, BucketsRequest, VersionsRequest),
            *(FloorRequest, SeenRequest, SetHorizon, ReleaseFloor, HistoryRequest, ClockRequest),
            *(Prepare, Accept, PromisesRequest, RegisterFloorsRequest),
        ),
        _PEERS,
    ),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """The permissions of one key. ``indexes`` is empty when it may use all indexes."""

    role: Role
    indexes: frozenset[str] = frozenset()


class Authority:
    """The authorised keys.

    Args:
        grants: the permissions of each public key.
        admits_plain: whether requests without a key are allowed everything: only while an open
            cluster is being changed to CURVE.
    """

    def __init__(self, grants: Mapping[str, Grant], *, admits_plain: bool = False) -> None:
        self._grants = dict(grants)
        self._admits_plain = admits_plain

    def __len__(self) -> int:
        return len(self._grants)

    @property
    def keys(self) -> frozenset[str]:
        """The public keys that may connect."""
        return frozenset(self._grants)

    def admits(self, key: str) -> bool:
        """Whether a key may connect at all."""
        return key in self._grants

    def is_peer(self, key: str) -> bool:
        """Whether the list gives a key the role ``peer``."""
        grant = self._grants.get(key)
        return grant is not None and grant.role is Role.PEER

    def check(self, user: str | None, message: Message) -> None:
        """Refuse a request that its sender may not make.

        Args:
            user: the public key of the sender; None without CURVE.

        Raises:
            Unauthorised: the key is unknown (it may have been revoked), its role does not
                allow the request, or it is limited to other indexes.
        """
        if user is None and self._admits_plain:
            return
        grant = self._grants.get(user or "")
        if grant is None:
            raise Unauthorised("this key is not authorised")
        name = type(message).__name__
        if grant.role not in _NEEDED.get(type(message), ()):
            raise Unauthorised(f"a key with role {grant.role} may not send {name}")
        if grant.indexes:
            if isinstance(message, IndexesRequest):
                raise Unauthorised("this key may use some indexes only; it may not list all")
            index = getattr(message, "index", None)
            if index is not None and index not in grant.indexes:
                raise Unauthorised(f"this key may not use index {index!r}")

    def needs_membership(self, user: str | None, message: Message) -> bool:
        """Whether a request is allowed only for keys that the topology lists."""
        if user is None and self._admits_plain:
            return False
        needed = _NEEDED.get(type(message), _ALL_ROLES)
        grant = self._grants.get(user or "")
        return needed != _ALL_ROLES and (grant is None or grant.role is Role.PEER)


def read_authority(path: Path, *, admits_plain: bool = False) -> Authority:
    """Read the list from a file, or from all files of a directory except hidden files.

    Raises:
        ConfigError: a file cannot be read, other users may write it, or a line is not valid;
            the text has file and line.
    """
    grants: dict[str, Grant] = {}
    for file in _files(path):
        for where, key, grant in _parse(_read(file), str(file)):
            if key in grants:
                raise ConfigError(f"{where}: the key appears twice")
            grants[key] = grant
    return Authority(grants, admits_plain=admits_plain)


def fingerprint(path: Path) -> tuple[object, ...]:
    """Return names, times, sizes, inodes and modes of the files: they change with the list."""
    found: list[object] = []
    try:
        for file in _files(path):
            stats = file.stat()
            found.append((file.name, stats.st_mtime_ns, stats.st_size, stats.st_ino, stats.st_mode))
    except (OSError, ConfigError) as error:
        found.append(str(error))
    return tuple(found)


def _files(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        _check_not_shared(path, path.stat())
        visible = [file for file in path.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return sorted(file for file in visible if not file.name.endswith("~"))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            _check_not_shared(file, os.fstat(opened.fileno()))
            data = opened.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{file} is too large for a list of keys")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None


def _check_not_shared(path: Path, stats: os.stat_result) -> None:
    mode = stat.S_IMODE(stats.st_mode)
    if mode & 0o022:
        raise ConfigError(f"others may write {path} (mode {mode:03o}); do: chmod go-w {path}")


def _parse(text: str, name: str) -> Iterator[tuple[str, str, Grant]]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("# ") and words[0] != "#":
            where = f"{name}, line {number}"
            yield where, _key(words[0], where), _grant(words[1:], where)


def _key(word: str, where: str) -> str:
    if not is_key(word):
        raise ConfigError(f"{where}: the line does not begin with a public key (40 characters)")
    return word


def _grant(words: list[str], where: str) -> Grant:
    try:
        role = Role(words[0] if words else "")
    except ValueError:
        given = f"'{words[0]}'" if words else "missing"
        raise ConfigError(f"{where}: the role is {given}; allowed are {_list(Role)}") from None
    if words[1:] and role not in (Role.READ, Role.WRITE):
        raise ConfigError(f"{where}: role {role} cannot be limited to indexes")
    return Grant(role, frozenset(_index(word, where) for word in words[1:]))


def _index(word: str, where: str) -> str:
    try:
        check_index(word)
    except LimitError as error:
        raise ConfigError(f"{where}: {error}") from None
    return word


def _list(words: Iterable[str]) -> str:
    return " | ".join(words)
