"""A simple, fast, resilient, distributed key/value store."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dstash import errors as errors
    from dstash import types as types
    from dstash.client.async_index import AsyncIndex
    from dstash.client.asyncio import AsyncClient
    from dstash.client.blocking import Client
    from dstash.client.index import Index
    from dstash.client.results import BatchResult
    from dstash.config import Security
    from dstash.errors import DStashError
    from dstash.types import Durability, Level, Outcome

__all__ = [
    "AsyncClient",
    "AsyncIndex",
    "BatchResult",
    "Client",
    "DStashError",
    "Durability",
    "Index",
    "Level",
    "Outcome",
    "Security",
]

_HOMES = {
    "AsyncClient": "client.asyncio",
    "AsyncIndex": "client.async_index",
    "BatchResult": "client.results",
    "Client": "client.blocking",
    "DStashError": "errors",
    "Durability": "types",
    "Index": "client.index",
    "Level": "types",
    "Outcome": "types",
    "Security": "config",
}
#: Modules that are attributes of the package without an import of their own.
_MODULES = ("errors", "types")


def __getattr__(name: str) -> "Any":
    """Hand a name on when it is first asked for (PEP 562).

    The commands import this package as well, and must have begun before the rest is loaded: until
    then Ctrl-C prints a traceback.
    """
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"dstash.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dstash' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"dstash.{_HOMES[name]}"), name)
    return value
