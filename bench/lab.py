"""The systems of a run: started at first use, stopped at its end."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from bench.crew import Connect, Crew
from bench.stores.dstash_store import DStash, DStashCluster
from bench.stores.echo import EchoServer
from bench.stores.etcd import EtcdServer
from bench.stores.lmdb_store import Lmdb
from bench.stores.memcached_store import Memcached, MemcachedServers
from bench.stores.redis_store import Redis, RedisCluster, RedisClustered, RedisServer
from bench.stores.store import Store, System
from bench.work import Note
from dstash.types import Durability

S = TypeVar("S", bound=System)
C = TypeVar("C", bound=AbstractContextManager[Any])

LEVELS = ("one", "quorum", "all")
#: The name of dstash with local reads.
LOCAL = "dstash N=3 local"
#: The name of dstash whose peers sync once an interval.
RELAXED = "dstash N=3 interval"


class Lab:
    """The environment of a run.

    Args:
        folder: for data and logs.
        stack: closes and stops everything.
        note: called with each progress message.
    """

    def __init__(self, folder: Path, stack: ExitStack, note: Note, *, full: bool) -> None:
        self.folder = folder
        self.note = note
        self.full = full
        #: Remarks on the figures.
        self.remarks: list[str] = []
        self._stack = stack

    def started(self, system: S) -> S:
        """Start a system, and stop it when the run ends."""
        self.note(f"starting {type(system).__name__}")
        self._stack.enter_context(system)
        return system

    def entered(self, client: C) -> C:
        """Close a client when the run ends."""
        self._stack.enter_context(client)
        return client

    # -- servers

    @cached_property
    def redis(self) -> RedisServer:
        """One Redis."""
        return self.started(RedisServer(self.folder / "redis"))

    @cached_property
    def redis_cluster(self) -> RedisCluster:
        """Three masters."""
        return self.started(RedisCluster(self.folder / "redis-cluster"))

    @cached_property
    def memcached(self) -> MemcachedServers:
        """Three servers."""
        return self.started(MemcachedServers(self.folder / "memcached"))

    @cached_property
    def etcd(self) -> EtcdServer:
        """One server."""
        return self.started(EtcdServer(self.folder / "etcd"))

    @cached_property
    def echo(self) -> EchoServer:
        """One server."""
        return self.started(EchoServer(self.folder / "echo"))

    @cached_property
    def one_copy(self) -> DStashCluster:
        """Three peers, each key on one of them."""
        return self.started(DStashCluster(self.folder / "dstash-1", 1))

    @cached_property
    def three_copies(self) -> DStashCluster:
        """Three peers, each key on all of them."""
        return self.started(DStashCluster(self.folder / "dstash-3", 3))

    @cached_property
    def relaxed(self) -> DStashCluster:
        """Three peers, each key on all of them, which sync once an interval."""
        return self.started(DStashCluster(self.folder / "dstash-i", 3, Durability.INTERVAL))

    # -- stores

    @cached_property
    def rivals(self) -> list[Connect]:
        """The alternatives to dstash."""
        return [
            partial(Redis, self.redis.port),
            partial(RedisClustered, self.redis_cluster.ports[0]),
            partial(Memcached, self.memcached.ports),
        ]

    def dstash(self, *levels: str) -> list[Connect]:
        """Return dstash with three copies at each of these levels."""
        return [
            partial(DStash, f"dstash N=3 {level}", self.three_copies.addresses, level)
            for level in levels
        ]

    @cached_property
    def dstash_one_copy(self) -> Connect:
        """dstash with one copy, for which all levels are equal."""
        return partial(DStash, "dstash N=1", self.one_copy.addresses, "one")

    @cached_property
    def dstash_local(self) -> Connect:
        """dstash with three copies at level one, whose client reads the stores of the peers."""
        return partial(DStash, LOCAL, self.three_copies.addresses, "one", "auto")

    @cached_property
    def dstash_relaxed(self) -> Connect:
        """dstash with three copies at quorum, whose peers sync once an interval."""
        return partial(DStash, RELAXED, self.relaxed.addresses, "quorum")

    @cached_property
    def stores(self) -> dict[str, Store]:
        """A client of each store in this process, by name."""
        connects = [*self.rivals, self.dstash_one_copy, *self.dstash(*LEVELS)]
        connects += [self.dstash_local, self.dstash_relaxed]
        stores: list[Store] = [connect() for connect in connects]
        stores.append(Lmdb(self.folder / "lmdb"))
        for store in stores:
            self._stack.callback(store.close)
        return {store.name: store for store in stores}

    @cached_property
    def disks(self) -> list[Lmdb]:
        """Three raw environments, which are synced one after the other."""
        disks = [Lmdb(self.folder / f"synced-{number}") for number in range(3)]
        for disk in disks:
            self._stack.callback(disk.close)
        return disks

    @cached_property
    def crew(self) -> Crew:
        """Processes with a client of each store."""
        crew = Crew([*self.rivals, *self.dstash("one", "quorum")])
        self._stack.callback(crew.close)
        return crew
