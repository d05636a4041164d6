"""Tests that both clients have the same methods with the same arguments."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.client.indexes.async_index import AsyncIndex
from dstash.client.indexes.index import Index

#: For tools with their own operations, such as backups, which block in threads.
TOOLS = {"run", "session"}


def methods(of: type) -> dict[str, Callable[..., Any]]:
    return {
        name: member
        for name, member in inspect.getmembers(of, callable)
        if not name.startswith("_") and name not in TOOLS
    }


def plain(annotation: Any) -> Any:
    """Return the type of the result, with or without await."""
    if typing.get_origin(annotation) in (Iterator, AsyncIterator):
        return ("walk", typing.get_args(annotation))
    return annotation


def arguments(method: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    hints = typing.get_type_hints(method)
    return [
        (parameter.name, parameter.kind, parameter.default, hints.get(parameter.name))
        for parameter in inspect.signature(method).parameters.values()
    ]


def test_clients_have_the_same_methods() -> None:
    assert methods(AsyncClient).keys() == methods(Client).keys()


def test_indexes_have_the_same_methods() -> None:
    assert methods(AsyncIndex).keys() == methods(Index).keys()
    assert {name for name in dir(MutableMapping) if name.isalpha()} <= methods(AsyncIndex).keys()


@pytest.mark.parametrize("name", sorted(methods(Client)))
def test_methods_of_clients_are_alike(name: str) -> None:
    blocking, awaited = getattr(Client, name), getattr(AsyncClient, name)
    assert arguments(blocking) == arguments(awaited)
    if name not in ("from_config", "from_settings", "index", "limiter", "lock", "semaphore"):
        results = [typing.get_type_hints(method)["return"] for method in (blocking, awaited)]
        assert plain(results[0]) == plain(results[1])
        assert inspect.iscoroutinefunction(awaited) or inspect.isasyncgenfunction(awaited)


@pytest.mark.parametrize("name", sorted(methods(AsyncIndex)))
def test_methods_of_indexes_are_alike(name: str) -> None:
    assert arguments(getattr(Index, name)) == arguments(getattr(AsyncIndex, name))
