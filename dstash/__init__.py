"""A simple, fast, resilient, distributed key/value store."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dstash import errors as errors
    from dstash import types as types
    from dstash.about import __version__
    from dstash.client.admin import Admin, AsyncAdmin
    from dstash.client.asyncio import AsyncClient
    from dstash.client.blocking import Client
    from dstash.client.indexes.async_index import AsyncIndex
    from dstash.client.indexes.index import Index
    from dstash.client.registers.async_locks import AsyncLock, AsyncSemaphore
    from dstash.client.registers.limiters import AsyncLimiter, Limiter
    from dstash.client.registers.locks import Lock, Semaphore
    from dstash.client.results import BatchResult, ChangeResult, Entry
    from dstash.config.client import Security
    from dstash.errors import (
        AnswerLost,
        BatchError,
        BelowFloor,
        Busy,
        ChangeConflict,
        ClockSkew,
        ClosedError,
        ConfigError,
        Conflict,
        CorruptRecord,
        CorruptStore,
        DeadlinePassed,
        DiskFull,
        DStashError,
        ForeignStore,
        Forgotten,
        Forming,
        IndexDropped,
        LimitError,
        LockLost,
        MembershipError,
        MembershipUnreachable,
        Misrouted,
        NoPeers,
        NotReady,
        PeerIdInUse,
        Preempted,
        ProtocolError,
        Refused,
        StaleEpoch,
        StoreError,
        StoreFailed,
        StoreInUse,
        TimedOut,
        Unauthorised,
        Unavailable,
        UndecodableValue,
        UnsupportedType,
        UsageError,
        VersionMismatch,
        WrongCluster,
    )
    from dstash.types import Durability, Level, OnError, Outcome
    from dstash.wire.values import TypeRegistry, Undecodable

__all__ = [
    "Admin",
    "AnswerLost",
    "AsyncAdmin",
    "AsyncClient",
    "AsyncIndex",
    "AsyncLimiter",
    "AsyncLock",
    "AsyncSemaphore",
    "BatchError",
    "BatchResult",
    "BelowFloor",
    "Busy",
    "ChangeConflict",
    "ChangeResult",
    "Client",
    "ClockSkew",
    "ClosedError",
    "ConfigError",
    "Conflict",
    "CorruptRecord",
    "CorruptStore",
    "DStashError",
    "DeadlinePassed",
    "DiskFull",
    "Durability",
    "Entry",
    "ForeignStore",
    "Forgotten",
    "Forming",
    "Index",
    "IndexDropped",
    "Level",
    "LimitError",
    "Limiter",
    "Lock",
    "LockLost",
    "MembershipError",
    "MembershipUnreachable",
    "Misrouted",
    "NoPeers",
    "NotReady",
    "OnError",
    "Outcome",
    "PeerIdInUse",
    "Preempted",
    "ProtocolError",
    "Refused",
    "Security",
    "Semaphore",
    "StaleEpoch",
    "StoreError",
    "StoreFailed",
    "StoreInUse",
    "TimedOut",
    "TypeRegistry",
    "Unauthorised",
    "Unavailable",
    "Undecodable",
    "UndecodableValue",
    "UnsupportedType",
    "UsageError",
    "VersionMismatch",
    "WrongCluster",
    "__version__",
]

#: The modules of names; all other names are those of errors.
_HOMES = {
    "Admin": "client.admin",
    "AsyncAdmin": "client.admin",
    "AsyncClient": "client.asyncio",
    "AsyncIndex": "client.indexes.async_index",
    "AsyncLimiter": "client.registers.limiters",
    "AsyncLock": "client.registers.async_locks",
    "AsyncSemaphore": "client.registers.async_locks",
    "BatchResult": "client.results",
    "ChangeResult": "client.results",
    "Client": "client.blocking",
    "Durability": "types",
    "Entry": "client.results",
    "Index": "client.indexes.index",
    "Level": "types",
    "Limiter": "client.registers.limiters",
    "Lock": "client.registers.locks",
    "OnError": "types",
    "Outcome": "types",
    "Security": "config.client",
    "Semaphore": "client.registers.locks",
    "TypeRegistry": "wire.values",
    "Undecodable": "wire.values",
    "__version__": "about",
}
#: Modules that are attributes of the package without an import of their own.
_MODULES = ("errors", "types")

if not TYPE_CHECKING:  # a type checker would conclude that any name exists

    def __getattr__(name: str) -> object:
        """Load a name when it is first used (PEP 562).

        The commands import this package as well, and must have begun before the rest is loaded:
        until then Ctrl-C prints a traceback.
        """
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"dstash.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'dstash' has no attribute {name!r}")
        home = import_module(f"dstash.{_HOMES.get(name, 'errors')}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not, and those that every module has."""
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *_MODULES, *special})
