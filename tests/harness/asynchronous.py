"""The asyncio client for tests without an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

from dstash import AsyncClient
from dstash.client.admin import AsyncAdmin


class Driven:
    """Has the methods of an ``AsyncClient`` (or of one of its indexes); each call blocks."""

    def __init__(self, runner: asyncio.Runner, target: Any) -> None:
        self._runner = runner
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if isinstance(found, AsyncAdmin):
            return Driven(self._runner, found)
        return self._call(found) if callable(found) else found

    def _call(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            made = method(*args, **options)
            if inspect.isawaitable(made):
                return self._runner.run(_await(made))
            if isinstance(made, AsyncIterator):
                return iter(self._runner.run(_collect(made)))
            return Driven(self._runner, made) if name_of(made) == "AsyncIndex" else made

        return call


def driven(runner: asyncio.Runner, *seeds: str, **settings: Any) -> Driven:
    """Return a new asyncio client with blocking calls."""
    return Driven(runner, AsyncClient(*seeds, **settings))


def name_of(made: object) -> str:
    """Return the name of the class of an object."""
    return type(made).__name__


async def _await(made: Any) -> Any:
    return await made


async def _collect(made: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in made]
