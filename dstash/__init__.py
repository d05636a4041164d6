"""A simple, fast, resilient, distributed key/value store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dstash.errors import DStashError
from dstash.types import Durability, Level, Outcome

if TYPE_CHECKING:
    from dstash.client.async_index import AsyncIndex
    from dstash.client.asyncio import AsyncClient
    from dstash.client.blocking import Client
    from dstash.client.index import Index
    from dstash.client.results import BatchResult
    from dstash.config import Security

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
    "Index": "client.index",
    "Security": "config",
}


def __getattr__(name: str) -> Any:
    """Hand a name on when it is first asked for (PEP 562).

    The commands import this package as well, and must have begun before the rest is loaded.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'dstash' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"dstash.{_HOMES[name]}"), name)
    return value
