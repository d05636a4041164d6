"""Copying partitions of a running cluster, without I/O: the cluster is asked through ``Source``.

A partition is asked for its digest at as many replicas as a quorum read asks; one of them, at
least, has whatever was acknowledged. Equal digests mean that any of them has it all: one is copied,
page by page, and the copy has to have the same digest. Then it is what the replicas held at one
moment. If not, something was written meanwhile, and it is copied again; where it never comes to
rest, all of those replicas are copied, and the newest version of each key is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, TypeVar

from dstash.backup.pieces import PieceWriter
from dstash.cluster.replication.handlers import CORRUPT, kind_of, pack_partitions
from dstash.cluster.replication.transfer import split_digests, split_flags
from dstash.errors import ProtocolError, Unavailable
from dstash.store.digest import EMPTY, DigestKind, Sum
from dstash.store.record import outranks
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.replication import CopyReply, CopyRequest, DigestsReply, DigestsRequest
from dstash.wire.shapes import Message

#: How often a partition may change while it is copied, before it is taken as it is.
_TRIES: Final = 3

Entry = tuple[bytes, bytes]
_K = TypeVar("_K")


class Routes(NamedTuple):
    """Whom to ask for each partition, under which epoch; nobody where too few replicas are left."""

    epoch: int
    targets: Sequence[tuple[str, ...]]


class Source(Protocol):
    """A cluster that answers questions."""

    def routes(self) -> Routes:
        """Return whom to ask now, at the level of a quorum."""
        ...

    def ask(self, peer: str, question: Message, epoch: int) -> Message:
        """Return a peer's answer; raise what it refused with, or why it did not answer."""
        ...


class _Agreed(NamedTuple):
    """What all replicas that were asked said of a partition. ``horizon`` is of the first."""

    peer: str
    digest: bytes
    horizon: Stamp
    kind: DigestKind


class Copier:
    """Copies the partitions of one piece."""

    def __init__(self, source: Source, writer: PieceWriter) -> None:
        self._source = source
        self._writer = writer
        #: What the digests of all peers cover: less where one has an earlier version.
        self._kind = DigestKind.CONTENT

    def copy(self, partitions: Iterable[int]) -> int:
        """Write all records of partitions; returns how many never came to rest.

        Raises:
            DStashError: a peer went away, or the placement changed: begin again.
        """
        left = list(partitions)
        for _ in range(_TRIES):
            left = self._copy_agreed(left)
            if not left:
                return 0
        self._merge(left)
        return len(left)

    def _copy_agreed(self, partitions: list[int]) -> list[int]:
        """Copy those that replicas agree on and that stand still; returns the others."""
        routes = self._source.routes()
        agreed = self._agreed(routes, partitions)
        changed: list[int] = []
        for peer, members in _grouped((one.peer, partition) for partition, one in agreed.items()):
            filled = [one for one in members if agreed[one].digest != EMPTY]
            found = dict.fromkeys(filled, EMPTY)
            for partition, entries in _by_partition(self._pages(peer, filled, routes.epoch)):
                mark = self._writer.mark()
                total = Sum(agreed[partition].horizon, kind=agreed[partition].kind)
                self._writer.write(_summed(entries, total))
                found[partition] = total.digest()
                if found[partition] != agreed[partition].digest:
                    self._writer.rewind(mark)
            changed += [one for one in filled if found[one] != agreed[one].digest]
        done = agreed.keys() - changed
        return [one for one in partitions if one not in done]

    def _agreed(self, routes: Routes, partitions: list[int]) -> dict[int, _Agreed]:
        said: dict[int, list[_Agreed]] = {}
        corrupt: set[int] = set()
        asked = [(peer, one) for one in partitions for peer in _targets(routes, one)]
        for peer, members in _grouped(asked):
            question = DigestsRequest(pack_partitions(members), kind=self._kind)
            answer = self._source.ask(peer, question, routes.epoch)
            if not isinstance(answer, DigestsReply) or len(answer.horizons) != 8 * len(members):
                raise ProtocolError(f"{peer} answered with an unexpected {type(answer).__name__}")
            kind = kind_of(answer.kind)
            if kind is not self._kind:  # digests of two kinds do not compare
                self._kind = DigestKind.VERSIONS
                return self._agreed(routes, partitions)
            digests = split_digests(answer.digests, len(members))
            flags = split_flags(answer.busy, len(members))
            for place, (partition, digest) in enumerate(zip(members, digests, strict=True)):
                horizon = int.from_bytes(answer.horizons[8 * place : 8 * place + 8], "big")
                said.setdefault(partition, []).append(_Agreed(peer, digest, horizon, kind))
                if flags[place] == CORRUPT:
                    corrupt.add(partition)
        return {
            partition: answers[0]
            for partition, answers in said.items()
            # Damaged records are in no digest: replicas may agree because all have the same damage.
            if len({one.digest for one in answers}) == 1 and partition not in corrupt
        }

    def _merge(self, partitions: list[int]) -> None:
        """Copy partitions from every replica that is asked, and keep the newest of each key."""
        routes = self._source.routes()
        for peers, members in _grouped((_targets(routes, one), one) for one in partitions):
            streams = [self._pages(peer, members, routes.epoch) for peer in peers]
            merged = heapq.merge(*streams, key=itemgetter(0))
            self._writer.write(
                reduce(_winner, entries) for _, entries in groupby(merged, key=itemgetter(0))
            )

    def _pages(self, peer: str, partitions: list[int], epoch: int) -> Iterator[Entry]:
        """Yield all that a peer has of partitions, by storage key; one page is in memory."""
        packed, after = pack_partitions(partitions), b""
        while partitions:
            page = self._source.ask(peer, CopyRequest(packed, after), epoch)
            if not isinstance(page, CopyReply) or (page.after and page.after <= after):
                raise ProtocolError(f"{peer} answered with an unexpected {type(page).__name__}")
            yield from codec.unpack_entries(page.keys, page.records)
            after = page.after
            if not after:
                return


def _winner(entry: Entry, other: Entry) -> Entry:
    return other if outranks(other[1], entry[1]) else entry


def _targets(routes: Routes, partition: int) -> tuple[str, ...]:
    targets = routes.targets[partition]
    if not targets:
        raise Unavailable(f"too few replicas of partition {partition} have their data")
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
