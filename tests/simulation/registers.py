"""Calls on registers: their script, and their history for the checks I7 to I9."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstash.client.operations.registers.wanted import Wanted
from dstash.client.results import ChangeResult
from dstash.errors import Conflict, DStashError, TimedOut
from dstash.store.record import partition_of
from dstash.types import Level, Outcome
from dstash.wire.keys import encode_key
from dstash.wire.registers import ANY, MISSING, NEVER_EXPIRES, Amounts, ChangeKind
from tests.harness.linearizability import UNKNOWN, Call
from tests.simulation.client import VirtualClient
from tests.simulation.events import MS

if TYPE_CHECKING:
    from tests.simulation.world import World

Script = Generator[Any, Any, None]

INDEX: Final = "@r"
#: Keys that are put, compared and deleted, and keys that are counted: every value of the first is
#: written once, so that it identifies a version.
PLAIN_KEYS: Final = ("plain0", "plain1")
COUNTERS: Final = ("count0", "count1")

#: Keys of the same partition as each of these, which are changed and read in batches only.
COMPANIONS: Final = {
    key: list(
        islice(
            (
                name
                for name in (f"{key}-{number}" for number in count())
                if partition_of(encode_key(name)) == partition_of(encode_key(key))
            ),
            6,
        )
    )
    for key in (*PLAIN_KEYS, *COUNTERS)
}

_PLAIN_KINDS: Final = (
    "put",
    "add",
    "compare",
    "compare",
    "swap",
    "delete",
    "touch",
    "read",
    "read",
)
_COUNTER_KINDS: Final = ("increment", "increment", "increment", "read", "delete")
_KINDS: Final = {
    "put": ChangeKind.PUT,
    "add": ChangeKind.PUT,
    "compare": ChangeKind.PUT,
    "swap": ChangeKind.SWAP,
    "delete": ChangeKind.DELETE,
    "touch": ChangeKind.TOUCH,
    "increment": ChangeKind.INCREMENT,
}
#: A time to live that ends after every run, even if clocks are set by ten years.
_LONG_MS: Final = 90 * 365 * 86_400_000
#: The most calls on one key: the checker examines many orders of them.
_MAX_CALLS: Final = 60
#: The most of them with an unknown outcome, for the same reason.
_MAX_UNKNOWN: Final = 9


class Step(NamedTuple):
    """A change that was applied: when its call began and ended, and the version."""

    began: int
    ended: int
    version: int


class RegisterCalls:
    """Calls of one client on registers."""

    def __init__(self, world: World, client: VirtualClient) -> None:
        self._world = world
        self._client = client
        self._timeout = world.conditions.timeout
        #: By key, the version and the value that this client saw last.
        self._seen: dict[str, tuple[int, Any]] = {}

    def call(self) -> Script:
        """Make one call."""
        rng, history = self._world.rng, self._world.history
        key = rng.choice((*PLAIN_KEYS, *COUNTERS))
        calls = history.registers.setdefault(key, [])
        unknown = sum(call.is_unknown for call in calls)
        if len(calls) + history.open_registers >= _MAX_CALLS or unknown >= _MAX_UNKNOWN:
            return
        kind = rng.choice(_COUNTER_KINDS if key in COUNTERS else _PLAIN_KINDS)
        history.open_registers += 1
        yield from self._one(kind, [key])
        history.open_registers -= 1

    def call_batch(self) -> Script:
        """Make one call on many keys, which have one home, so that it decides them together."""
        rng, history = self._world.rng, self._world.history
        first = rng.choice((*PLAIN_KEYS, *COUNTERS))
        keys = [first, *rng.sample(COMPANIONS[first], rng.randint(4, 6))]
        for key in keys:
            calls = history.registers.setdefault(key, [])
            unknown = sum(call.is_unknown for call in calls)
            if len(calls) + history.open_registers >= _MAX_CALLS or unknown >= _MAX_UNKNOWN:
                return
        kind = rng.choice(_COUNTER_KINDS if first in COUNTERS else _PLAIN_KINDS)
        history.open_registers += 1
        yield from self._one(kind, keys)
        history.open_registers -= 1

    def _one(self, kind: str, keys: list[str]) -> Script:
        if kind == "read":
            yield from self._read(keys)
        else:
            yield from self._change(kind, keys)

    def read(self, key: str, tries: int = 1) -> Script:
        """Read a key, some times if that fails."""
        yield from self._read([key], tries)

    def write(self, key: str, tries: int) -> Script:
        """Write to a key, some times if that fails."""
        history, kind = self._world.history, "increment" if key in COUNTERS else "put"
        for _ in range(tries):
            before = len(history.steps.get(key, ()))
            yield from self._change(kind, [key])
            if len(history.steps.get(key, ())) > before:
                return
            yield 500 * MS
        history.broken.append(f"register {key} cannot be written")

    def _read(self, keys: list[str], tries: int = 1) -> Script:
        for left in range(tries - 1, -1, -1):
            began = self._now()
            operation = self._client.calls.lookup(INDEX, keys, self._timeout, Level.QUORUM)
            found, error = yield operation
            if error is None:
                for key in keys:
                    self._note(began, key, "read", None, found.get(key))
                return
            if tries > 1 and not left:
                text = f"register {keys[0]} cannot be read: {error!r}"
                self._world.history.broken.append(text)
            yield 500 * MS

    def _change(self, kind: str, keys: list[str]) -> Script:
        pairs: list[tuple[Any, Any]] = []
        arguments: dict[str, Any] = {}
        versions: dict[Any, int] = {}
        for key in keys:
            self._world.register_values += 1000
            value = self._world.register_values
            pairs.append((key, value))
            arguments[key] = None
            if kind in ("put", "add", "swap"):
                arguments[key] = value
            elif kind == "compare":
                versions[key], before = self._seen.get(key, (1, "never"))
                arguments[key] = (before, value)
            elif kind == "increment":
                arguments[key] = 1
        expected = versions or (MISSING if kind == "add" else ANY)
        wanted = Wanted(
            _KINDS[kind],
            _LONG_MS if kind == "touch" else NEVER_EXPIRES,
            expected=expected,
            amounts=Amounts(1) if kind == "increment" else None,
            is_add=kind == "add",
        )
        began = self._now()
        operation = self._client.calls.change(kind, INDEX, pairs, wanted, self._timeout)
        result, error = yield operation
        for key in keys if kind != "touch" else ():
            self._note_change(began, key, kind, arguments[key], result, error)

    def _note_change(
        self,
        began: int,
        key: str,
        kind: str,
        argument: Any,
        result: ChangeResult | None,
        error: DStashError | None,
    ) -> None:
        if result is None:
            if isinstance(error, TimedOut):
                self._note(began, key, kind, argument, UNKNOWN)
            return
        is_applied = key in result.versions
        if key in result.outcomes:
            reason = result.errors.get(key)
            if isinstance(reason, Conflict):
                if kind == "compare":
                    self._note(began, key, kind, argument, False)
            elif result.outcomes[key] is not Outcome.FAILED:
                self._note(began, key, kind, argument, UNKNOWN)
            return
        answers = {
            "put": None,
            "add": is_applied,
            "compare": is_applied,
            "delete": is_applied,
            "swap": result.values.get(key),
            "increment": result.values.get(key),
        }
        version = result.versions.get(key, 0)
        self._note(began, key, kind, argument, answers[kind], version)
        if is_applied:
            step = Step(began, self._now(), version)
            self._world.history.steps.setdefault(key, []).append(step)
            value = argument[1] if kind == "compare" else argument
            self._seen[key] = (version, None if kind == "delete" else value)
            if kind == "delete":
                del self._seen[key]

    def _note(
        self, began: int, key: str, kind: str, argument: Any, answer: Any, version: int = 0
    ) -> None:
        call = Call(began, self._now(), kind, argument, answer, version)
        self._world.history.registers.setdefault(key, []).append(call)
        shown = "?" if call.is_unknown else repr(answer)
        text = f"{self._client.name} {kind} {argument!r} -> {shown} (since {began / 1e6:.6f})"
        self._world.note(text, key.encode())

    def _now(self) -> int:
        return self._world.events.now
