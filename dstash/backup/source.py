"""The running cluster of a save or a restore, through a client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Protocol

from dstash.backup import registers
from dstash.backup.copy import Routes
from dstash.backup.pieces import Entries
from dstash.backup.restore_rules import Choice, Fate, Rule, into_same
from dstash.client.operations.base import Operation
from dstash.client.operations.peer_query import PeerQuery
from dstash.client.operations.reads import ExistsOperation, RecordOperation, StateOperation
from dstash.client.operations.registers.changes import ChangeOperation
from dstash.client.operations.registers.names import has_registers
from dstash.client.operations.registers.request_ids import RequestIds
from dstash.client.operations.writes import ApplyOperation
from dstash.client.refusals import is_because
from dstash.client.results import ChangeResult
from dstash.client.session import Session
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.topology import Topology
from dstash.errors import BelowFloor, Conflict, CorruptRecord, ProtocolError
from dstash.store.record import Record, build_record, open_record
from dstash.types import Level
from dstash.version import newest_stamp
from dstash.wire.keys import Key, decode_key
from dstash.wire.shapes import Message


class Caller(Protocol):
    """Runs operations: the blocking client."""

    def session(self, *, timeout: float | None = None) -> Session:
        """Return the session, once the cluster is known."""
        ...

    def run(
        self, make: Callable[[Session, int], Operation], *, timeout: float | None = None
    ) -> Any:
        """Run the operation that ``make`` returns for a session and a deadline."""
        ...


class LiveCluster:
    """Queries a cluster, and restores records into it.

    Args:
        client: a client of the cluster.
        write: the write level of restored records.
        timeout: seconds for one call.
    """

    def __init__(self, client: Caller, write: Level, timeout: float) -> None:
        self._client = client
        self._write = write
        self._timeout = timeout

    def topology(self) -> Topology:
        """Return the topology."""
        return self._client.session(timeout=self._timeout).known_view().topology

    # -- saving

    def routes(self) -> Routes:
        """Return the replicas that a quorum read asks now."""
        session = self._client.session(timeout=self._timeout)
        table = session.read_targets(Level.QUORUM)
        return Routes(table.epoch, table)

    def ask(self, peer: str, question: Message, epoch: int) -> Message:
        """Return a peer's answer; raise its refusal, or the reason why there is no answer."""
        answer: Message = self._run(
            lambda session, deadline: PeerQuery(session, deadline, peer, question, epoch)
        )
        return answer

    # -- restoring

    def restore(self, index: bytes, entries: Entries, rule: Rule) -> Counter[Fate]:
        """Write (encoded key, record) pairs by a rule; return the number per fate.

        Records that count as stored were read back afterwards.

        Raises:
            DStashError: some records were not written, with the reason.
        """
        if has_registers(index.decode()):
            return self._restore_registers(index, entries, rule)
        there, corrupt = self._states(index, [key for key, _ in entries])
        choices = self._choices(entries, there, rule)
        if rule is into_same:  # whether the stored record was older is unknown
            choices |= dict.fromkeys(corrupt, Choice(Fate.CORRUPT))
        written = [
            (key, choice.record) for key, choice in choices.items() if choice.record is not None
        ]
        self._apply(index, written)
        refused = self._refused(
            index, [item for item in written if choices[item[0]].fate is Fate.STORED]
        )
        if refused and rule is not into_same:
            # They were stamped when the call began, and horizons have passed that stamp since.
            raise BelowFloor(
                f"{len(refused)} records were older than a horizon when they arrived; "
                "run the restore again"
            )
        return Counter(
            Fate.DELETED_KEPT if key in refused else choice.fate for key, choice in choices.items()
        )

    def _restore_registers(self, index: bytes, entries: Entries, rule: Rule) -> Counter[Fate]:
        session = self._client.session(timeout=self._timeout)
        names = {name: key for key, _ in entries if (name := _name(key)) is not None}
        found: dict[Key, Record] = self._run(
            lambda session, deadline: RecordOperation(
                session, deadline, index.decode(), list(names), Level.QUORUM, _no_values
            )
        )
        stored = {names[name]: record for name, record in found.items()}
        now = session.cluster_time()
        steps = {
            key: registers.choose(registers.as_read(record), stored.get(key), rule, now)
            for key, record in entries
        }
        ids = RequestIds(session)
        fates = registers.unchanged(steps)
        for change in registers.changes(steps):
            refused = self._change(index, change, ids)
            for key, fate in change.fates.items():
                fates[Fate.NEWER_KEPT if key in refused else fate] += 1
        return fates

    def _change(self, index: bytes, change: registers.Change, ids: RequestIds) -> Collection[Key]:
        """Change registers; return the keys that were changed by others meanwhile."""
        result: ChangeResult = self._run(
            lambda session, deadline: ChangeOperation(
                session, deadline, index.decode(), change.items, change.wanted, ids, _no_values
            )
        )
        for error in result.reasons:
            if not isinstance(error, Conflict):
                raise error
        return result.outcomes

    def _states(self, index: bytes, keys: list[bytes]) -> tuple[dict[bytes, Record], list[bytes]]:
        """Return the newest record of each key that has one, and the keys of unknown state.

        For those keys too many replicas are corrupt.
        """
        if not keys:
            return {}, []
        names = {name: key for key in keys if (name := _name(key)) is not None}
        try:
            found: dict[Key, Record] = self._run(
                lambda session, deadline: StateOperation(
                    session, deadline, index.decode(), list(names), Level.QUORUM, _no_values
                )
            )
        except CorruptRecord:
            if len(keys) == 1:
                return {}, keys
            half = len(keys) // 2
            there, corrupt = self._states(index, keys[:half])
            more_there, more_corrupt = self._states(index, keys[half:])
            return there | more_there, corrupt + more_corrupt
        return {names[name]: record for name, record in found.items()}, []

    def _choices(
        self, entries: Entries, there: dict[bytes, Record], rule: Rule
    ) -> dict[bytes, Choice]:
        session = self._client.session(timeout=self._timeout)
        for record in there.values():
            session.observe(newest_stamp(record.version))
        fresh, now = session.new_version(), session.cluster_time()
        return {key: rule(open_record(saved), there.get(key), now, fresh) for key, saved in entries}

    def _apply(self, index: bytes, written: list[tuple[bytes, Record]]) -> None:
        if written:
            items = [(key, key, build_record(index, key, record)) for key, record in written]
            result = self._run(
                lambda session, deadline: ApplyOperation(
                    session, deadline, index.decode(), self._write, items
                )
            )
            for error in result.reasons:
                if not is_because(error, BelowFloor):
                    raise error

    def _refused(self, index: bytes, stored: list[tuple[bytes, Record]]) -> set[bytes]:
        """Return the keys that are missing although they were written.

        Replicas refuse records at or below their horizon, which may differ between replicas.
        Therefore the keys are read back.
        """
        names = {name: item for item in stored if (name := _name(item[0])) is not None}
        if not names:
            return set()
        found = self._run(
            lambda session, deadline: ExistsOperation(
                session, deadline, index.decode(), list(names), Level.QUORUM, _no_values
            )
        )
        session = self._client.session(timeout=self._timeout)
        now, settings = session.cluster_time(), session.known_view().index_settings
        limit = settings.get(index.decode(), IndexSettings(index.decode()))
        return {
            key
            for name, (key, record) in names.items()
            if name not in found and limit.record(record).is_live(now)
        }

    def _run(self, make: Callable[[Session, int], Operation]) -> Any:
        return self._client.run(make, timeout=self._timeout)


def _name(encoded: bytes) -> Key | None:
    """Return the decoded key; None for a key that only another language can have stored."""
    try:
        return decode_key(encoded)
    except ProtocolError:
        return None


def _no_values(*arguments: object) -> list[object]:
    raise AssertionError("states are fetched as records")
