"""The tree of errors. Each class has a stable wire code and says whether a retry can help.

::

    DStashError
    ├── UsageError                an argument or call is invalid
    │   ├── LimitError            a limit of the data model is exceeded
    │   └── UnsupportedType       a key or value has an unsupported type
    ├── ConfigError               a setting is wrong; names file, key, and allowed values
    ├── ProtocolError             a message violates the protocol
    │   └── VersionMismatch       no protocol version in common
    ├── Refused                   a peer read the request and refused it
    │   ├── StaleEpoch            the sender's topology is older (the newer one is attached)
    │   ├── WrongCluster          the peer belongs to another cluster
    │   ├── Misrouted             the peer has no replica of the key
    │   ├── NotReady              the peer is starting, stopping, or not yet synced
    │   ├── Forming               fewer members than min_peers
    │   ├── Busy                  the peer is overloaded; says when to retry
    │   ├── ClockSkew             the version is too far ahead of the cluster clock
    │   ├── BelowFloor            the version is older than the peer may still accept
    │   │   └── IndexDropped      the record was dropped with its index
    │   ├── DiskFull              no space to store
    │   ├── StoreFailed           the peer's disk failed
    │   ├── CorruptRecord         the stored record fails its checksum
    │   ├── DeadlinePassed        the request arrived after its deadline
    │   ├── Unauthorised          the key may not do this
    │   └── Preempted             a replica has promised a later round of a register
    ├── Conflict                  a register has another version than was expected
    ├── Forgotten                 a request is too old to know whether it was applied
    ├── Unavailable               not enough replicas answered; nothing was stored
    │   └── NoPeers               no peer answered
    ├── TimedOut                  no answer in time; a write may or may not be stored
    ├── BatchError                part of a batch failed; carries the outcome per key
    ├── UndecodableValue          this client cannot decode a stored value
    ├── LockLost                  a lock is not held any more
    ├── AnswerLost                a change was applied, but its answer is not known
    ├── ClosedError               the client is closed
    ├── StoreError                a data directory cannot be used
    │   ├── StoreInUse, ForeignStore, CorruptStore
    └── MembershipError           the membership cannot do what was requested
        ├── MembershipUnreachable, PeerIdInUse, ChangeConflict

The codes are append-only: the code of a deleted class is not reused. As in HTTP, programs use the
code and people read the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from dstash.outcome import Outcome


class DStashError(Exception):
    """Base of all errors. ``code`` is stable on the wire; ``details`` are machine-readable."""

    code: ClassVar[int] = 1
    #: Whether the same request may succeed later, or on another replica.
    retryable: ClassVar[bool] = False
    #: Exit status of the commands.
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class UsageError(DStashError, ValueError):
    """An argument or call is invalid."""

    code = 2
    exit_code = 2


class LimitError(UsageError):
    """A limit is exceeded. The text names the limit and what is allowed."""

    code = 3


class UnsupportedType(UsageError, TypeError):
    """A key or value has a type that dstash does not support."""

    code = 4


class ConfigError(DStashError):
    """A setting is wrong."""

    code = 5
    exit_code = 2


class ProtocolError(DStashError):
    """A message violates the protocol."""

    code = 10


class VersionMismatch(ProtocolError):
    """The two sides have no protocol version in common."""

    code = 11


class Refused(DStashError):
    """A peer read the request and refused it."""

    code = 20


class StaleEpoch(Refused):
    """The sender's topology is older than the peer's; ``details['topology']`` is the newer one."""

    code = 21
    retryable = True


class WrongCluster(Refused):
    """The peer belongs to another cluster."""

    code = 22


class Misrouted(Refused):
    """The peer has no replica of the key."""

    code = 23
    retryable = True


class NotReady(Refused):
    """The peer is starting, stopping, or not yet synced."""

    code = 24
    retryable = True
    exit_code = 5


class Forming(Refused):
    """The cluster has fewer members than ``min_peers``."""

    code = 25
    retryable = True
    exit_code = 5


class Busy(Refused):
    """The peer is overloaded; ``details['retry_after_ms']`` says when to retry."""

    code = 26
    retryable = True
    exit_code = 5


class ClockSkew(Refused):
    """The version is too far ahead of the cluster clock; the text says by how much."""

    code = 27
    retryable = True


class BelowFloor(Refused):
    """The version is older than the peer may still accept; retry with a new stamp."""

    code = 28
    retryable = True


class IndexDropped(BelowFloor):
    """The record was dropped with its index, so it must not be stored again."""

    code = 38


class DiskFull(Refused):
    """The peer has no disk space to store."""

    code = 29
    exit_code = 5


class StoreFailed(Refused):
    """The peer's disk failed; nothing of the request was acked."""

    code = 30
    retryable = True
    exit_code = 5


class CorruptRecord(Refused):
    """The stored record fails its checksum."""

    code = 31
    retryable = True


class DeadlinePassed(Refused):
    """The request reached the peer after its deadline."""

    code = 32
    retryable = True
    exit_code = 6


class Unauthorised(Refused):
    """The key may not do this."""

    code = 33
    exit_code = 7


class Preempted(Refused):
    """A replica has promised a later round of a register, or has taken one."""

    code = 36
    retryable = True


class Conflict(DStashError):
    """A register has another version than was expected; ``details['version']`` is the present."""

    code = 34
    exit_code = 4


class Forgotten(DStashError):
    """A request is too old to know whether it was applied to a register."""

    code = 37


class Unavailable(DStashError):
    """Not enough replicas answered for the requested level; nothing was stored."""

    code = 40
    retryable = True
    exit_code = 5


class NoPeers(Unavailable):
    """None of the known peers answered."""

    code = 41


class TimedOut(DStashError, TimeoutError):
    """A read got no answer in time, or a write may or may not have been stored."""

    code = 42
    retryable = True
    exit_code = 6


class BatchError(DStashError):
    """Part of a batch failed. ``outcomes`` maps each key that was not stored to its outcome.

    Attributes:
        outcomes: the outcome of each key that was not stored.
        errors: the reason for each of them, which names the peers.
        result: the ``BatchResult``.
    """

    code = 43
    exit_code = 9

    def __init__(
        self,
        message: str,
        outcomes: Mapping[Any, Outcome] | None = None,
        errors: Mapping[Any, DStashError] | None = None,
        result: Any = None,
    ) -> None:
        super().__init__(message)
        self.outcomes: dict[Any, Outcome] = dict(outcomes or {})
        self.errors: dict[Any, DStashError] = dict(errors or {})
        self.result = result


class ClosedError(DStashError):
    """The client is closed."""

    code = 44


class UndecodableValue(DStashError):
    """This client cannot decode a stored value; the text names its key.

    Attributes:
        undecodable: an ``Undecodable`` for each such key.
        found: the values of the other keys of a batch look-up.
    """

    code = 45

    def __init__(
        self,
        message: str,
        undecodable: Mapping[Any, Any] | None = None,
        found: Mapping[Any, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.undecodable: dict[Any, Any] = dict(undecodable or {})
        self.found: dict[Any, Any] = dict(found or {})


class LockLost(DStashError):
    """A lock is not held any more: it expired, was taken away, or could not be renewed."""

    code = 46
    exit_code = 4


class AnswerLost(DStashError):
    """A change was applied, but its answer (the value before) was lost; ``details['version']``."""

    code = 47


class StoreError(DStashError):
    """A data directory cannot be used."""

    code = 50


class StoreInUse(StoreError):
    """Another process has the data directory open."""

    code = 51


class ForeignStore(StoreError):
    """The data directory belongs to another cluster or peer."""

    code = 52


class CorruptStore(StoreError):
    """LMDB cannot open the data directory."""

    code = 53


class MembershipError(DStashError):
    """The membership cannot do what was requested."""

    code = 60


class MembershipUnreachable(MembershipError):
    """The membership (Consul, or the shared directory) does not answer."""

    code = 61
    retryable = True
    exit_code = 5


class PeerIdInUse(MembershipError):
    """A live process holds the lock of that peer id."""

    code = 62


class ChangeConflict(MembershipError):
    """Another topology change is in progress, or was made first."""

    code = 63
    retryable = True


def _family(base: type[DStashError]) -> list[type[DStashError]]:
    return [base, *(cls for child in base.__subclasses__() for cls in _family(child))]


def _index_by_code() -> dict[int, type[DStashError]]:
    table: dict[int, type[DStashError]] = {}
    for cls in _family(DStashError):
        if "code" not in vars(cls):
            continue  # never sent: the class only has its own exit status
        if table.setdefault(cls.code, cls) is not cls:
            raise AssertionError(f"{cls.__name__} and {table[cls.code].__name__} share {cls.code}")
    return table


BY_CODE: dict[int, type[DStashError]] = _index_by_code()


def from_wire(code: int, message: str, details: dict[str, Any]) -> DStashError:
    """Rebuild the error that a peer sent. An unknown code becomes a plain ``Refused``."""
    error = BY_CODE.get(code, Refused)(message)
    error.details = details  # not by keyword: the names come from the other side
    return error
