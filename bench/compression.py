"""``python -m bench.compression``: what ``compression = "zstd"`` saves and costs.

Three peers with three copies on this machine, and two clients that differ in this setting only.
They are measured alternately; a figure is the median over the rounds. The records are like those
of a web service: customers with orders.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from dstash import Client
from dstash.types import Compression
from tests.harness.peers import Peers

_SETTINGS: Final[tuple[Compression, ...]] = ("none", "zstd")
#: Orders of a customer, and records of that size in a batch.
_SIZES: Final = ((1, 5000), (8, 2000), (100, 200))
_SINGLES: Final = 200

_TOWNS: Final = ("Berlin", "Lyon", "Porto", "Gdansk", "Bergen")
_STATES: Final = ("open", "paid", "sent", "returned")


def customer(rng: random.Random, orders: int) -> dict[str, Any]:
    """Return a record."""
    number = rng.randrange(10**8)
    return {
        "id": number,
        "name": f"Customer {rng.randrange(10**6)}",
        "email": f"customer{number}@example.com",
        "address": {"street": f"{rng.randrange(300)} High Street", "town": rng.choice(_TOWNS)},
        "created": f"2026-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T12:00:00Z",
        "orders": [
            {
                "order_id": rng.randrange(10**10),
                "article": f"A-{rng.randrange(10**5)}",
                "quantity": rng.randrange(1, 9),
                "price": rng.randrange(10**5) / 100,
                "currency": "EUR",
                "state": rng.choice(_STATES),
            }
            for _ in range(orders)
        ],
    }


def timed(work: Callable[[], object], count: int) -> float:
    """Return the microseconds of each of ``count`` records."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / count * 1e6


def put_each(client: Client, index: str, entries: dict[str, Any]) -> None:
    """Put each record by a call of its own."""
    for key, value in entries.items():
        client.put(index, key, value)


def measure(client: Client, index: str, entries: dict[str, Any]) -> Iterator[float]:
    """Yield microseconds for each record: batches put and looked up, single ones likewise."""
    keys, few = list(entries), dict(islice(entries.items(), _SINGLES))
    yield timed(lambda: client.batch_put(index, entries), len(keys))
    yield timed(lambda: client.batch_lookup(index, keys), len(keys))
    yield timed(lambda: put_each(client, index, few), len(few))
    yield timed(lambda: [client.lookup(index, key) for key in few], len(few))


def rows(peers: Peers, rounds: int) -> Iterator[list[str]]:
    """Measure all sizes, and yield a row for each size and setting."""
    clients = {name: peers.client(timeout=60.0, compression=name) for name in _SETTINGS}
    rng = random.Random(1)
    for orders, count in _SIZES:
        entries = {f"customer:{number}": customer(rng, orders) for number in range(count)}
        taken: dict[str, list[list[float]]] = {name: [] for name in _SETTINGS}
        for _ in range(rounds):
            for name, client in clients.items():
                taken[name].append(list(measure(client, f"{name}-{orders}", entries)))
        sizes = {size.name: size.bytes / size.records for size in clients["none"].indexes()}
        for name in _SETTINGS:
            figures = [median(column) for column in zip(*taken[name], strict=True)]
            size = f"{sizes[f'{name}-{orders}']:,.0f}"
            yield [str(orders), name, size, *(f"{figure:,.1f}" for figure in figures)]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.compression", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    heads = ("orders", "compression", "bytes", "batch_put", "batch_lookup", "put", "lookup")
    table = Table(*heads, title="for each record: bytes stored in each copy, microseconds")
    with (
        tempfile.TemporaryDirectory(prefix="dstash-compression-") as folder,
        Peers.local(Path(folder)) as peers,
    ):
        peers.form("a", "b", "c")
        for row in rows(peers, options.rounds):
            table.add_row(*row)
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
