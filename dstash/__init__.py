"""A simple, fast, resilient, distributed key/value store."""

from dstash.client.async_index import AsyncIndex
from dstash.client.asyncio import AsyncClient
from dstash.client.blocking import Client
from dstash.client.index import Index
from dstash.client.results import BatchResult
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
]
