"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from dstash.client.admin import Admin
from dstash.client.base import BaseClient, new_session
from dstash.client.calls import Calls
from dstash.client.describe import describe_cluster, describe_place
from dstash.client.entries import check_keys, key_rounds, put_rounds
from dstash.client.indexes.index import Index
from dstash.client.local.batches import ASK, PartlyRead
from dstash.client.operations.base import Call
from dstash.client.operations.indexes.sizes import IndexDefaults, IndexSize, defaults_in
from dstash.client.operations.registers.names import has_registers
from dstash.client.operations.walks import Walk
from dstash.client.refusals import nothing_written
from dstash.client.registers.blocking import RegisterMethods
from dstash.client.results import BatchResult
from dstash.client.session import KEYS_PER_BATCH, Session
from dstash.client.transport.pool import ChannelPool
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.limits import Ttl, check_index, check_ttl
from dstash.store.record import Record
from dstash.types import AnyLevel, AnyOnError, OnError
from dstash.wire.keys import Entries, Key, encode_key
from dstash.wire.messages import Count, Scan, ScanKeys

T = TypeVar("T")


class Client(RegisterMethods, BaseClient):
    """A client of a dstash cluster. Thread-safe; usable after a fork.

    A client that is garbage-collected without ``close`` closes its connections, with a
    ``ResourceWarning``.

    Args:
        *addresses: of one or more peers (``host:port`` or ``tcp://host:port``), as arguments, as a
            list, or as a text with commas; the client discovers the others. Or one address of the
            cluster, ``dstash://host:port,host:port/?setting=value``, which may set any setting.
            Without any, it uses ``DSTASH_PEERS``, Consul, or a cluster on this machine.
        settings: ``consul``, ``cluster``, ``read`` and ``write`` (levels), ``timeout`` (seconds),
            ``zone`` and others: see ``conf/client.toml``. ``security`` is a ``Security`` with the
            keys for a closed cluster. ``compression="zstd"`` stores values compressed where that
            makes them smaller (docs/values.md). ``tracing`` is True, or an OpenTelemetry tracer
            provider, for a span of each call.

    Raises:
        ConfigError: a setting is invalid.
        NoPeers: on the first call, if no peer answers in time.
    """

    def _start(self) -> None:
        self._pool = ChannelPool(self.settings, self.types, partial(new_session, self.settings))
        self._close_with_client(self._pool)

    @property
    def _session(self) -> Session:
        return self._pool.session

    def _is_closed(self) -> bool:
        return self._pool.is_closed

    def _current_session(self) -> Session:
        return self._session

    @property
    def _calls(self) -> Calls:
        return self._pool.calls

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection. Calls in other threads fail; wait for them for at most 2 s."""
        self._pool.close()

    # -- one key

    def put(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        fence: int | None = None,
    ) -> None:
        """Store a value. When it returns, as many replicas as ``write`` requires have stored it.

        Args:
            index: name of the keyspace.
            key: str, bytes or int, 1 to 400 bytes encoded.
            value: any msgpack type, datetime, Decimal, UUID, set, tuple, or a registered type;
                docs/values.md lists them.
            ttl: seconds until the key expires, or a timedelta; None for never.
            timeout: seconds for the whole call, retries included.
            write: ``one``, ``quorum`` or ``all``; an index that begins with ``@`` uses a quorum.
            fence: token of a lock, as in ``add``; only in an index that begins with ``@``.

        Raises:
            LimitError, UnsupportedType: the arguments are not allowed; no request was sent.
            Unavailable, Refused: the value is not stored.
            TimedOut: the value may or may not be stored; the text says why.
        """
        with self._tracing.call("put", index):
            put = self._calls.short_put(index, key, value, ttl, timeout, write, fence)
            self._run(put).raise_first()

    def lookup(
        self,
        index: str,
        key: Key,
        default: Any = None,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> Any:
        """Return the value of a key, or ``default``.

        Raises:
            Unavailable, TimedOut: the key could not be read at the level.
            UndecodableValue: the type of the value is not registered, or its decoder failed.
        """
        with self._tracing.call("lookup", index):
            found = self._pool.local.lookup(index, key, default, timeout, read)
            if found is ASK and timeout is None:
                found = self._pool.quick.lookup(index, key, default, read)
            if found is not ASK:
                return found
            return self._run(self._calls.short_lookup(index, key, timeout, read)).get(key, default)

    def delete(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        version: int | None = None,
        fence: int | None = None,
    ) -> bool:
        """Delete a key; return whether it existed. Errors as in ``put``.

        In an index that begins with ``@``, ``version`` and ``fence`` are as in ``compare_and_set``.
        """
        with self._tracing.call("delete", index):
            delete = self._calls.short_delete(index, key, timeout, write, version, fence)
            result = self._run(delete)
            result.raise_first()
            return bool(result.deleted)

    def exists(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> bool:
        """Return whether a key exists."""
        with self._tracing.call("exists", index):
            return bool(self._run(self._calls.exists(index, [key], timeout, read)))

    def ttl(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> float | None:
        """Return the seconds until a key expires, None if it never does.

        Raises:
            KeyError: the key does not exist.
        """
        with self._tracing.call("ttl", index):
            record = self._record(index, key, timeout, read)
            return self._calls.seconds_left(key, record)

    def touch(
        self,
        index: str,
        key: Key,
        ttl: Ttl | None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        version: int | None = None,
        fence: int | None = None,
    ) -> bool:
        """Set the time to live of a key (None: for ever); return whether the key exists.

        The value stays the same. A concurrent put of the key always wins. In an index that begins
        with ``@``, ``version`` and ``fence`` are as in ``compare_and_set``.

        Raises:
            BelowFloor: the call took so long that a delete in the meantime may have been missed.
            Unavailable: the time to live is unchanged.
            TimedOut: the new time to live may or may not be stored.
        """
        with self._tracing.call("touch", index):
            if has_registers(index) or version is not None or fence is not None:
                return self._touch_register(index, key, ttl, version, fence, timeout)
            check_ttl(ttl)
            with nothing_written():
                record = self._record(index, key, timeout, None)
            if record is None:
                return False
            self._run(self._calls.touch(index, key, record, ttl, timeout, write)).raise_first()
            return True

    # -- many keys

    def batch_put(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> BatchResult:
        """Store any number of values; if a key occurs twice, its last value counts.

        Args:
            index: name of the keyspace.
            entries: a mapping, or an iterable of (key, value) pairs of any length.
            ttl: as in ``put``.
            timeout: seconds for each 100,000 keys (20,000 in an index that begins with ``@``).
            write: ``one``, ``quorum`` or ``all``.
            on_error: ``raise`` raises ``BatchError`` after the whole batch was tried, if a key
                was not stored; ``return`` returns the result in this case, too. Errors of the
                whole call, such as ``NoPeers``, are always raised.

        Returns:
            The number of keys stored, and the outcome of each key that was not.

        Raises:
            BatchError: some keys were not stored; ``outcomes``, ``errors`` and ``result`` tell
                which, and why.
            LimitError, UnsupportedType: a key, value or argument is not allowed. Of the keys with
                the same timeout none was sent; earlier ones are stored, and ``details["result"]``
                counts them.
        """
        with self._tracing.call("batch_put", index, entries) as span:
            mode, total = OnError.parse(on_error), BatchResult()
            with total.kept_in_errors():
                size = self._calls.keys_per_round(index, KEYS_PER_BATCH)
                for chunk in put_rounds(entries, size):
                    total.add(self._run(self._calls.put(index, chunk, ttl, timeout, write)))
            span.note_outcome(total)
            return total.conclude(mode)

    def batch_lookup(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> dict[Key, Any]:
        """Return the values of the keys that exist, in the order of ``keys``.

        Args:
            index: name of the keyspace.
            keys: any number of keys.
            timeout: seconds for the whole call.
            read: ``one``, ``quorum`` or ``all``.
            on_error: what to do with values that cannot be decoded: ``raise`` an error that names
                their keys, or ``return`` an ``Undecodable`` in the place of each.

        Raises:
            Unavailable, TimedOut: some keys could not be read at the level.
            UndecodableValue: some values cannot be decoded; ``found`` has the others.
        """
        with self._tracing.call("batch_lookup", index, keys) as span:
            many = list(check_keys(keys, "batch_lookup"))
            mode = OnError.parse(on_error)
            values = self._pool.local.lookup_all(index, many, timeout, read)
            found: dict[Key, Any]
            if values is None:
                found = self._run(self._calls.lookup(index, many, timeout, read, mode))
            else:
                partly, answers = PartlyRead(many, values), dict[Key, Any]()
                if partly.rest:
                    with partly.kept_in_errors():
                        lookup = self._calls.lookup(index, partly.rest, timeout, read, mode)
                        answers = self._run(lookup)
                found = partly.with_answers(answers)
            span.note_found(len(found))
            return found

    def batch_delete(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> BatchResult:
        """Delete many keys. ``deleted`` of the result counts the keys that existed.

        Arguments and errors are those of ``batch_put``.
        """
        with self._tracing.call("batch_delete", index, keys) as span:
            mode, total = OnError.parse(on_error), BatchResult()
            with total.kept_in_errors():
                size = self._calls.keys_per_round(index, KEYS_PER_BATCH)
                for chunk in key_rounds(keys, size, "batch_delete"):
                    total.add(self._run(self._calls.delete(index, chunk, timeout, write)))
            span.note_outcome(total)
            return total.conclude(mode)

    # -- scans

    def items(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> Iterator[tuple[Key, Any]]:
        """Yield (key, value) of an index, in no particular order, in bounded memory.

        A key that exists during the whole scan is returned once. A key that is put or deleted
        during the scan is returned once or not at all.

        Args:
            index: name of the keyspace.
            prefix: return only keys that begin with it.
            timeout: seconds for each page.
            read: ``one`` reads one replica of each key: it is the fastest, but lacks the writes
                that this replica missed. ``quorum`` and ``all`` return the same as a look-up of
                each key at that level, and take longer: see docs/consistency.md.
            on_error: what to do with values that cannot be decoded: ``raise`` an error that names
                their keys, or ``return`` an ``Undecodable`` in the place of each.

        Raises:
            Unavailable, TimedOut: a page could not be read at the level.
            UndecodableValue: values of the next page cannot be decoded.
        """
        walk = self._calls.walk(index, prefix, Scan, read, on_error)
        for page in self._pages("items", index, walk, timeout):
            yield from page

    def keys(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> Iterator[Key]:
        """Yield the keys of an index; see ``items``."""
        walk = self._calls.walk(index, prefix, ScanKeys, read)
        for page in self._pages("keys", index, walk, timeout):
            yield from page

    def count(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> int:
        """Count the keys of an index; see ``items``."""
        with self._tracing.call("count", index):
            walk = self._calls.walk(index, prefix, Count, read)
            total = 0
            while not walk.done:
                total += sum(self._page(walk, timeout))
            return total

    def index(self, name: str) -> Index:
        """Return one index as a mapping."""
        check_index(name)
        return Index(self, name)

    def drop(self, index: str, prefix: str | bytes = "", *, timeout: float | None = None) -> None:
        """Drop an index, or the keys of it that begin with ``prefix``.

        One entry in the topology drops any number of records. When the call returns, no read at
        ``quorum`` or ``all`` finds a record that was acked before the call. A write that is made
        after the call stays. Peers remove the records from their disks in the background;
        ``status`` shows how far they are. See docs/consistency.md.

        Args:
            index: name of the keyspace.
            prefix: drop only keys that begin with it.
            timeout: seconds for the whole call.

        Raises:
            ChangeConflict: a member runs an earlier version, or too many drops are not settled.
            Unavailable, NotReady: nothing was dropped.
            TimedOut: the records may or may not be dropped; repeat the call, or look at ``status``.
        """
        with self._tracing.call("drop", index):
            deadline = self._calls.deadline(timeout)
            self._view(deadline)
            self._run(self._calls.drop(index, prefix, deadline))

    # -- the cluster

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the cluster, its members, their liveness, and the status that each reports."""
        with self._tracing.call("status"):
            deadline = self._calls.deadline(timeout)
            view = self._view(deadline)
            answers = self._run(self._calls.status(view, deadline))
            return describe_cluster(view, answers)

    def indexes(self, *, timeout: float | None = None) -> list[IndexSize]:
        """Return the indexes that have live records, with their approximate sizes, by name.

        One replica of each partition is asked, so writes that it missed are not counted. Each peer
        counts about 100,000 records; the rest is estimated (``exact`` is false then).

        Raises:
            Unauthorised: the key may use some indexes only.
            UsageError: a peer runs an earlier version, which cannot list indexes.
        """
        with self._tracing.call("indexes"):
            deadline = self._calls.deadline(timeout)
            self._view(deadline)
            found: list[IndexSize] = self._run(self._calls.indexes(deadline))
            return found

    def index_settings(self, *, timeout: float | None = None) -> list[IndexDefaults]:
        """Return the indexes that have settings, by name; ``admin.set_index`` changes them.

        They are those of the topology that this client knows: it learns of changes by others with
        its next request.

        Raises:
            ChangeConflict: a member runs an earlier version, which does not apply settings.
        """
        with self._tracing.call("index_settings"):
            return defaults_in(self._view(self._calls.deadline(timeout)).topology)

    def where(self, index: str, key: Key, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the partition of a key and its replicas, in rank order."""
        with self._tracing.call("where", index):
            check_index(index)
            encoded = encode_key(key)
            return describe_place(self._view(self._calls.deadline(timeout)), encoded)

    def topology(self, *, timeout: float | None = None) -> Topology:
        """Return the current topology, as the first peer that answers has it."""
        with self._tracing.call("topology"):
            return self._view(self._calls.deadline(timeout)).topology

    @property
    def admin(self) -> Admin:
        """The admin requests of this client: ``client.admin.remove(["a"])``."""
        return Admin(self._view, self._run, lambda: self._calls, self._tracing)

    # -- for tools, such as backups

    def run(self, make: Callable[[Session, int], Call], *, timeout: float | None = None) -> Any:
        """Run an operation and return its result.

        Args:
            make: returns the operation, given the session and the deadline.
            timeout: seconds for the whole call.
        """
        session = self.session(timeout=timeout)
        return self._run(make(session, self._calls.deadline(timeout)))

    def session(self, *, timeout: float | None = None) -> Session:
        """Return the state that the calls of this client share, once the cluster is found."""
        if self._session.view is None:
            self._view(self._calls.deadline(timeout))
        return self._session

    # -- inside

    def _record(
        self, index: str, key: Key, timeout: float | None, read: AnyLevel | None
    ) -> Record | None:
        found = self._run(self._calls.records(index, [key], timeout, read))
        record: Record | None = found.get(key)
        return record

    def _pages(
        self, name: str, index: str, walk: Walk[T], timeout: float | None
    ) -> Iterator[list[T]]:
        """Yield the pages of a scan, each with a span: the caller decides how long a scan takes."""
        while not walk.done:
            with self._tracing.call(name, index):
                page = self._page(walk, timeout)
            yield page

    def _page(self, walk: Walk[T], timeout: float | None) -> list[T]:
        deadline = self._calls.deadline(timeout)
        while (part := walk.take(self._run(walk.operation(self._session, deadline)))) is None:
            pass
        return part

    def _view(self, deadline: int) -> View:
        self._pool.discover(deadline)
        return self._session.known_view()

    def _run(self, operation: Call) -> Any:
        operation.trace = self._tracing.trace()
        return self._pool.run(operation)
