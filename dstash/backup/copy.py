"""The copy of partitions of a running cluster, without I/O: ``Source`` queries the cluster.

The digest of a partition is requested from as many replicas as a quorum read asks: at least one of
them has every acknowledged write. If the digests are equal, each replica has all of them, so one
replica is copied page by page. If the digest of the copy is the same too, the copy is the state of
the replicas at one moment. If not, the partition was written meanwhile and is copied again. A
partition that keeps changing is copied from all of those replicas, and the newest version of each
key is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, TypeVar

from dstash.backup.pieces import PieceWriter
from dstash.errors import ProtocolError, Unavailable
from dstash.store.digest import EMPTY, DigestKind, Sum, kind_of
from dstash.store.record import outranks
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.packing import CORRUPT, pack_partitions, split_digests, split_flags
from dstash.wire.replication import CopyReply, CopyRequest, DigestsReply, DigestsRequest
from dstash.wire.shapes import Message

#: Number of consistent copies of a partition that are tried before replicas are merged.
_MAX_TRIES: Final = 3

Entry = tuple[bytes, bytes]
_K = TypeVar("_K")


class Routes(NamedTuple):
    """The replicas to ask for each partition, and the epoch; empty if too few are left."""

    epoch: int
    targets: Sequence[tuple[str, ...]]


class Source(Protocol):
    """A cluster that answers requests."""

    def routes(self) -> Routes:
        """Return the replicas that a quorum read asks now."""
        ...

    def ask(self, peer: str, question: Message, epoch: int) -> Message:
        """Return a peer's answer; raise its refusal, or the reason why there is no answer."""
        ...


class _Agreed(NamedTuple):
    """The digest that all asked replicas of a partition agree on; ``horizon`` of the first."""

    peer: str
    digest: bytes
    horizon: Stamp
    kind: DigestKind


class Copier:
    """Copies the partitions of one piece."""

    def __init__(self, source: Source, writer: PieceWriter) -> None:
        self._source = source
        self._writer = writer
        #: The kind of digest that all peers support: an earlier version supports fewer.
        self._kind = DigestKind.CONTENT

    def copy(self, partitions: Iterable[int]) -> int:
        """Write all records of partitions; return the number of partitions that kept changing.

        Raises:
            DStashError: a peer is unreachable, or the placement changed: begin again.
        """
        left = list(partitions)
        for _ in range(_MAX_TRIES):
            left = self._copy_agreed(left)
            if not left:
                return 0
        self._merge(left)
        return len(left)

    def _copy_agreed(self, partitions: list[int]) -> list[int]:
        """Copy the partitions that replicas agree on and that do not change; return the others."""
        routes = self._source.routes()
        agreed = self._agreed(routes, partitions)
        changed: list[int] = []
        for peer, members in _grouped(
            (state.peer, partition) for partition, state in agreed.items()
        ):
            nonempty = [number for number in members if agreed[number].digest != EMPTY]
            found = dict.fromkeys(nonempty, EMPTY)
            for partition, entries in _by_partition(self._pages(peer, nonempty, routes.epoch)):
                mark = self._writer.mark()
                total = Sum(agreed[partition].horizon, kind=agreed[partition].kind)
                self._writer.write(_summed(entries, total))
                found[partition] = total.digest()
                if found[partition] != agreed[partition].digest:
                    self._writer.rewind(mark)
            changed += [number for number in nonempty if found[number] != agreed[number].digest]
        done = agreed.keys() - changed
        return [partition for partition in partitions if partition not in done]

    def _agreed(self, routes: Routes, partitions: list[int]) -> dict[int, _Agreed]:
        states: dict[int, list[_Agreed]] = {}
        corrupt: set[int] = set()
        asked = [(peer, number) for number in partitions for peer in _targets(routes, number)]
        for peer, members in _grouped(asked):
            question = DigestsRequest(pack_partitions(members), kind=self._kind)
            answer = self._source.ask(peer, question, routes.epoch)
            if not isinstance(answer, DigestsReply) or len(answer.horizons) != 8 * len(members):
                raise ProtocolError(f"{peer} answered with an unexpected {type(answer).__name__}")
            kind = kind_of(answer.kind)
            if kind is not self._kind:  # digests of different kinds cannot be compared
                self._kind = DigestKind.VERSIONS
                return self._agreed(routes, partitions)
            digests = split_digests(answer.digests, len(members))
            flags = split_flags(answer.busy, len(members))
            for place, (partition, digest) in enumerate(zip(members, digests, strict=True)):
                horizon = int.from_bytes(answer.horizons[8 * place : 8 * place + 8], "big")
                states.setdefault(partition, []).append(_Agreed(peer, digest, horizon, kind))
                if flags[place] == CORRUPT:
                    corrupt.add(partition)
        return {
            partition: answers[0]
            for partition, answers in states.items()
            # Digests do not cover corrupt records: replicas with the same corrupt records agree.
            if len({state.digest for state in answers}) == 1 and partition not in corrupt
        }

    def _merge(self, partitions: list[int]) -> None:
        """Copy partitions from every asked replica, and keep the newest version of each key."""
        routes = self._source.routes()
        for peers, members in _grouped((_targets(routes, number), number) for number in partitions):
            streams = [self._pages(peer, members, routes.epoch) for peer in peers]
            merged = heapq.merge(*streams, key=itemgetter(0))
            self._writer.write(
                reduce(_winner, entries) for _, entries in groupby(merged, key=itemgetter(0))
            )

    def _pages(self, peer: str, partitions: list[int], epoch: int) -> Iterator[Entry]:
        """Yield the records of partitions on a peer, by storage key, with one page in memory."""
        packed, after = pack_partitions(partitions), b""
        while partitions:
            page = self._source.ask(peer, CopyRequest(packed, after), epoch)
            if not isinstance(page, CopyReply) or (page.after and page.after <= after):
                raise ProtocolError(f"{peer} answered with an unexpected {type(page).__name__}")
            yield from codec.unpack_entries(page.keys, page.records)
            after = page.after
            if not after:
                return


def _winner(first: Entry, second: Entry) -> Entry:
    return second if outranks(second[1], first[1]) else first


def _targets(routes: Routes, partition: int) -> tuple[str, ...]:
    targets = routes.targets[partition]
    if not targets:
        raise Unavailable(f"partition {partition} has too few replicas with data for a quorum")
    return targets


def _grouped(pairs: Iterable[tuple[_K, int]]) -> list[tuple[_K, list[int]]]:
    """Return the (ascending) partitions of each peer, or of each set of peers."""
    groups: dict[_K, list[int]] = {}
    for key, partition in pairs:
        groups.setdefault(key, []).append(partition)
    return list(groups.items())


def _by_partition(entries: Iterable[Entry]) -> Iterator[tuple[int, Iterator[Entry]]]:
    for prefix, members in groupby(entries, key=lambda entry: entry[0][:2]):
        yield int.from_bytes(prefix, "big"), members


def _summed(entries: Iterable[Entry], total: Sum) -> Iterator[Entry]:
    for entry in entries:
        total.add([entry])
        yield entry
