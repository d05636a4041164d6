"""The workload of virtual clients: a mix of all calls, with unique values."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from dstash.client.operations.base import Call as ClientCall
from dstash.client.operations.reads import ExistsOperation, RecordOperation
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.short.write import ShortWrite
from dstash.client.operations.walks import Request
from dstash.client.operations.writes import ApplyOperation, WriteOperation
from dstash.errors import DStashError
from dstash.store.record import Record, build_record
from dstash.types import Level
from dstash.wire.keys import Key, encode_key
from dstash.wire.messages import Count, Scan, ScanKeys
from tests.simulation.client import VirtualClient
from tests.simulation.events import MS
from tests.simulation.history import Counted, Failure, Place, Read, Write, conclude, follow
from tests.simulation.registers import RegisterCalls
from tests.simulation.registry import independent

if TYPE_CHECKING:
    from tests.simulation.world import World

#: A script yields microseconds to sleep, or an operation, whose (result, error) it is sent.
Script = Generator[Any, Any, None]
#: A part of a script that ends with (result, error).
Call = Generator[Any, Any, tuple[Any, DStashError | None]]

_MIX: Final = {
    "put": 30,
    "put_ttl": 8,
    "lookup": 26,
    "delete": 9,
    "touch": 6,
    "record": 5,
    "exists": 3,
    "batch_put": 6,
    "batch_lookup": 7,
    "batch_delete": 3,
    "scan": 1,
}


class Runner:
    """Runs the script of a client."""

    def __init__(self, client: VirtualClient, script: Script, finished: Callable[[], None]) -> None:
        self._client = client
        self._script = script
        self._finished = finished
        client.world.events.after(1, self._go_on, None)

    def _go_on(self, value: Any) -> None:
        self._client.do(lambda: self._step(value))

    def _step(self, value: Any) -> None:
        try:
            wanted = self._script.send(value)
        except StopIteration:
            self._finished()
            return
        if isinstance(wanted, int):
            self._client.world.events.after(wanted, self._go_on, None)
        else:
            self._client.run(wanted, self._done)

    def _done(self, result: Any, error: DStashError | None) -> None:
        self._client.world.events.after(1, self._go_on, (result, error))


class Workload:
    """The calls of one client, written into the history of the world."""

    def __init__(self, world: World, client: VirtualClient) -> None:
        self._world = world
        self._client = client
        self._calls = client.calls
        self._timeout = world.conditions.timeout
        mix = _MIX | dict(world.conditions.mix)
        self._kinds, self._weights = list(mix), list(mix.values())
        self._registers = RegisterCalls(world, client)
        #: Records that were read, as a backup has them.
        self._backup: list[tuple[str, str, Record]] = []

    # -- scripts

    def script(self, calls: int) -> Script:
        """Make that many calls, with pauses."""
        rng, pause = self._world.rng, self._world.conditions.pause
        for _ in range(calls):
            if self._world.is_healing:
                return
            yield self._until_aligned(int(rng.expovariate(1 / pause)) + 1)
            kind = rng.choices(self._kinds, self._weights)[0]
            yield from getattr(self, f"_{kind}")()

    def _until_aligned(self, pause: int) -> int:
        aligned = self._world.conditions.aligned
        return pause + -(self._now() + pause) % aligned if aligned else pause

    def read_back(self, places: Sequence[Place]) -> Script:
        """Read every key at level ``all`` until that succeeds: the final state."""
        for index in sorted({index for index, _ in places}):
            keys = [key for name, key in places if name == index]
            for _ in range(30):
                _, error = yield from self._lookup_of(index, keys, Level.ALL, is_last=True)
                if error is None:
                    break
                yield 500 * MS
            else:
                text = f"{index} cannot be read at level all: {error!r}"
                self._world.history.broken.append(text)

    def read_registers(self) -> Script:
        """Read every register that was used, and write to it, until that succeeds."""
        for key in sorted(self._world.history.registers):
            yield from self._registers.read(key, tries=30)
            yield from self._registers.write(key, tries=10)

    def last_words(self, place: Place) -> Script:
        """Check that this client, which ran throughout, can still write and read."""
        index, key = place
        # A call or two may fail because of changes that the client learns of this way.
        for left in (4, 3, 2, 1, 0):
            yield 300 * MS
            yield from self._write("put", index, [key], Level.QUORUM, must_work=not left)
            if self._world.history.writes[place][-1].acked is not None:
                break
        yield from self._lookup_of(index, [key], Level.QUORUM, is_last=True)

    # -- kinds of calls

    def _put(self) -> Script:
        index, key = self._place()
        yield from self._write("put", index, [key], self._level())

    def _put_ttl(self) -> Script:
        index, key = self._place()
        ttl = self._world.rng.choice((0.05, 0.4, 2.0, 10.0))
        yield from self._write("put", index, [key], self._level(), ttl)

    def _delete(self) -> Script:
        index, key = self._place()
        yield from self._write("delete", index, [key], self._level())

    def _batch_put(self) -> Script:
        index, keys = self._places()
        yield from self._write("put", index, keys, self._level(), is_batch=True)

    def _batch_delete(self) -> Script:
        index, keys = self._places()
        yield from self._write("delete", index, keys, self._level(), is_batch=True)

    def _lookup(self) -> Script:
        index, key = self._place()
        yield from self._read_of(self._short_lookup, index, [key], self._level())

    def _batch_lookup(self) -> Script:
        index, keys = self._places()
        yield from self._lookup_of(index, keys, self._level())

    def _exists(self) -> Script:
        index, key = self._place()
        yield from self._read_of(self._calls.exists, index, [key], self._level())

    def _record(self) -> Script:
        index, key = self._place()
        yield from self._read_of(self._calls.records, index, [key], self._level())

    def _touch(self) -> Script:
        index, key = self._place()
        found, error = yield from self._read_of(self._calls.records, index, [key], Level.QUORUM)
        if error is not None or key not in found:
            return
        record = found[key]
        self._backup.append((index, key, record))
        yield from self._touch_record(index, key, record, (None, 0.3, 3.0, 20.0))

    def _late_touch(self) -> Script:
        """Read a record, mostly delete it, and still touch it some time later."""
        index, key = self._place()
        found, error = yield from self._read_of(self._calls.records, index, [key], Level.QUORUM)
        if error is None and key in found:
            if self._world.rng.random() < 0.7:
                yield from self._write("delete", index, [key], self._level())
            yield self._world.rng.randint(500, 3_000) * MS
            yield from self._touch_record(index, key, found[key], (None, None, 20.0))

    def _touch_record(
        self, index: str, key: str, record: Record, ttls: Sequence[float | None]
    ) -> Script:
        level, ttl = self._level(), self._world.rng.choice(ttls)
        operation = self._calls.touch(index, key, record, ttl, self._timeout, level)
        write = self._world.history.add(
            Write("touch", self._client.name, (index, key), level, self._now(), _value(record))
        )
        yield from self._run_write(operation, {key: write})

    def _restore(self) -> Script:
        """Write a record that was read some time ago, with the version that it had."""
        if not self._backup:
            return
        index, key, record = self._world.rng.choice(self._backup)
        level, encoded = self._level(), encode_key(key)
        content = build_record(index.encode(), encoded, record)
        operation = ApplyOperation(
            self._client.session,
            self._calls.deadline(self._timeout),
            index,
            level,
            [(key, encoded, content)],
        )
        write = self._world.history.add(
            Write("restore", self._client.name, (index, key), level, self._now(), _value(record))
        )
        yield from self._run_write(operation, {key: write})

    def _register(self) -> Script:
        yield from self._registers.call()

    def _register_batch(self) -> Script:
        yield from self._registers.call_batch()

    def _scan(self) -> Script:
        yield from self._scan_of(Scan)

    def _keys(self) -> Script:
        yield from self._scan_of(ScanKeys)

    def _count(self) -> Script:
        yield from self._scan_of(Count)

    def _scan_of(self, request: Request) -> Script:
        index = self._world.rng.choice(self._world.indexes)
        own = independent(self._world.seed, f"scan {self._client.name} {self._now()}")
        level = own.choices(list(Level), self._world.conditions.levels)[0]
        # A page may be read ahead, so the whole scan is as old as its start.
        began, found = self._now(), []
        walk = self._calls.walk(index, "", request, level)
        while not walk.done:
            deadline = self._calls.deadline(self._timeout)
            result, error = yield walk.operation(self._client.session, deadline)
            if error is not None:
                return
            found += walk.take(result) or []
        if request is Count:
            scan = Counted(self._client.name, index, level, began, self._now(), sum(found))
            self._world.history.counted.append(scan)
            return
        entries = dict.fromkeys(found, True) if request is ScanKeys else dict(found)
        if len(entries) < len(found):
            self._world.history.broken.append(f"a scan of {index} at {level} gave a key twice")
        # A key that a scan omits counts as missing for a look-up of the same duration.
        known = [key for name, key in self._world.places if name == index]
        for key in dict.fromkeys([*known, *entries]):
            value = entries.get(key)
            self._note_read(level, (index, str(key)), began, value, is_blind=value is True)

    # -- how they are made

    def _write(
        self,
        kind: str,
        index: str,
        keys: list[str],
        level: Level,
        ttl: float | None = None,
        *,
        is_batch: bool = False,
        must_work: bool = False,
    ) -> Script:
        values: dict[Key, Any] = {key: self._value() if kind == "put" else None for key in keys}
        writes = {
            key: self._world.history.add(
                Write(kind, self._client.name, (index, key), level, self._now(), values[key])
            )
            for key in keys
        }
        operation: WriteOperation | ShortWrite
        if is_batch and kind == "put":
            operation = self._calls.put(index, list(values.items()), ttl, self._timeout, level)
        elif is_batch:
            operation = self._calls.delete(index, keys, self._timeout, level)
        else:
            operation = self._short_write(kind, index, values, ttl, level)
        yield from self._run_write(operation, writes)
        if must_work:
            for write in writes.values():
                if write.acked is None:
                    text = f"{self._client.name} cannot write any more: {write.error}"
                    self._world.history.broken.append(text)

    def _short_write(
        self, kind: str, index: str, values: dict[Key, Any], ttl: float | None, level: Level
    ) -> ShortWrite:
        [(key, value)] = values.items()
        if kind == "put":
            return self._calls.short_put(index, key, value, ttl, self._timeout, level)
        return self._calls.short_delete(index, key, self._timeout, level)

    def _run_write(
        self, operation: WriteOperation | ShortWrite, writes: dict[str, Write]
    ) -> Script:
        follow(operation, writes)  # type: ignore[arg-type]  # a str is a Key
        result, error = yield operation
        conclude(writes, result, error, self._now())  # type: ignore[arg-type]
        for key, write in writes.items():
            text = f"{write.client} {write.kind} {write.value!r} at {write.level}: {write.outcome}"
            self._world.note(text, key.encode())

    def _short_lookup(
        self, index: str, keys: list[str], timeout: float | None, level: Level
    ) -> ShortLookup:
        [key] = keys
        return self._calls.short_lookup(index, key, timeout, level)

    def _lookup_of(
        self, index: str, keys: list[str], level: Level, *, is_last: bool = False
    ) -> Call:
        return (yield from self._read_of(self._calls.lookup, index, keys, level, is_last=is_last))

    def _read_of(
        self,
        make: Callable[..., ClientCall],
        index: str,
        keys: list[str],
        level: Level,
        *,
        is_last: bool = False,
    ) -> Call:
        operation = make(index, keys, self._timeout, level)
        began = self._now()
        found, error = yield operation
        if error is not None:
            failed = [Failure(self._client.name, (index, key), level, error) for key in keys]
            self._world.history.failures += failed
        for key in keys if error is None else ():
            answer = found.get(key)
            is_record = isinstance(operation, RecordOperation) and answer is not None
            self._note_read(
                level,
                (index, key),
                began,
                _value(answer) if is_record else answer,
                version=answer.version if is_record else None,
                is_blind=isinstance(operation, ExistsOperation) and answer is not None,
                is_last=is_last,
            )
        return found, error

    def _note_read(self, level: Level, place: Place, began: int, value: Any, **more: Any) -> None:
        read = Read(self._client.name, place, level, began, self._now(), value, **more)
        self._world.history.reads.append(read)
        text = f"{read.client} read {value!r} at {level} (since {began / 1e6:.6f})"
        self._world.note(text, place[1].encode())

    # -- choices

    def _value(self) -> str:
        self._client.values_made += 1
        name = f"{self._client.name}.{self._client.values_made}"
        return name + "~" * self._world.conditions.padding

    def _place(self) -> Place:
        return self._world.rng.choice(self._world.places)

    def _places(self) -> tuple[str, list[str]]:
        index, _ = self._place()
        keys = [key for name, key in self._world.places if name == index]
        count = self._world.rng.randint(*self._world.conditions.batch)
        return index, self._world.rng.sample(keys, min(len(keys), count))

    def _level(self) -> Level:
        return self._world.rng.choices(list(Level), self._world.conditions.levels)[0]

    def _now(self) -> int:
        return self._world.events.now


def _value(record: Any) -> str:
    """Return the value of a record (a msgpack string)."""
    return str(msgpack.unpackb(record.payload))


#: Kinds of operation that a script may yield.
Wanted = ClientCall | int
