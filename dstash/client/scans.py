"""Walking an index, page by page; asking peers about themselves; finding the first peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dstash.client.core import Chunk, Failure, Operation
from dstash.client.session import Send, Session
from dstash.errors import (
    CorruptRecord,
    DStashError,
    NoPeers,
    ProtocolError,
    Unauthorised,
    Unavailable,
    VersionMismatch,
    WrongCluster,
)
from dstash.limits import PARTITIONS
from dstash.types import Level
from dstash.wire.messages import (
    AskStatus,
    Count,
    Hello,
    Page,
    Repair,
    Scan,
    ScanKeys,
    StatusIs,
    Welcome,
)
from dstash.wire.shapes import Message

PAGE_KEYS: Final = 2000
PAGE_BYTES: Final = 2 * 1024 * 1024

#: How long a peer may take to begin a repair: who is told too early that it does not answer would
#: believe that it is not repaired.
_REPAIR_PATIENCE_MS: Final = 5000

Request = type[Scan] | type[ScanKeys] | type[Count]


class Walk:
    """Where a scan stands: the partitions still to walk, and the last key seen in the first."""

    def __init__(self, index: str, prefix: bytes, request: Request) -> None:
        self.index = index
        self.prefix = prefix
        self.request = request
        self.remaining: list[int] = list(range(PARTITIONS))
        self.after = b""
        self._asked: list[int] = []

    @property
    def done(self) -> bool:
        """Whether every partition was walked."""
        return not self.remaining

    def next_request(
        self, session: Session, damaged: frozenset[str] = frozenset()
    ) -> tuple[str | None, Message]:
        """Return the peer to ask for the next page (None: nobody can answer) and what to ask.

        ``damaged`` are peers that cannot read a record of this page: they are asked last.
        """
        table = session.all_targets() if damaged else session.read_targets(Level.ONE)
        targets = table[self.remaining[0]]
        by_use = sorted(targets, key=lambda one: (one in damaged, session.is_avoided(one)))
        peer = by_use[0] if by_use else None
        self._asked = [number for number in self.remaining if table[number] == targets]
        partitions = b"".join([number.to_bytes(2, "big") for number in self._asked])
        return peer, self.request(
            self.index, self.prefix, partitions, self.after, PAGE_KEYS, PAGE_BYTES
        )

    def advance(self, page: Page) -> None:
        """Move on past a page."""
        if page.done > len(self._asked) or (not page.done and page.after <= self.after):
            raise ProtocolError("a peer answered a scan with a page that does not move on")
        walked = set(self._asked[: page.done])
        resumed = self._asked[page.done : page.done + 1] if page.after else []
        rest = [
            number for number in self.remaining if number not in walked and number not in resumed
        ]
        self.remaining = resumed + rest
        self.after = page.after


class PageOperation(Operation):
    """Fetches the next page of a walk, from another replica when one fails."""

    def __init__(self, session: Session, deadline: int, walk: Walk) -> None:
        super().__init__(session, deadline)
        self.walk = walk
        self.page: Page | None = None

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_PageChunk(self)]

    def result(self) -> Page:
        """Return the page; the walk has moved on past it."""
        super().result()
        if self.page is None:
            raise AssertionError("a page operation ended without page or error")
        self.walk.advance(self.page)
        return self.page


class _PageChunk(Chunk):
    def __init__(self, operation: PageOperation) -> None:
        self.operation = operation
        self.damaged: frozenset[str] = frozenset()

    def begin(self, now: int) -> list[Send]:
        peer, request = self.operation.walk.next_request(self.operation.session, self.damaged)
        if peer is None:
            return self._again(now)
        return [self.operation.ask(peer, self, request, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, Page):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        self.operation.page = message
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if not failure.error.retryable:
            raise failure.error
        if isinstance(failure.error, CorruptRecord):
            self.damaged |= {peer}
        return self._again(now)

    def silent(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def _again(self, now: int) -> list[Send]:
        successor = _PageChunk(self.operation)
        successor.damaged = self.damaged
        successor.attempt = self.attempt + 1
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error


class StatusOperation(Operation):
    """Asks every member how it does; the result maps those that answered to their facts."""

    def __init__(self, session: Session, deadline: int, peers: Sequence[str]) -> None:
        super().__init__(session, deadline)
        self.peers = peers
        self.answers: dict[str, dict[str, Any]] = {}

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [self._chunk(peer) for peer in self.peers]

    def _chunk(self, peer: str) -> Chunk:
        return _StatusChunk(self, peer, AskStatus())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the answers."""
        super().result()
        return self.answers


class RepairOperation(StatusOperation):
    """Has every member check and compare what it holds; the result is as that of the status.

    Raises:
        Unavailable: no member has begun it.
    """

    def _chunk(self, peer: str) -> Chunk:
        return _RepairChunk(self, peer, Repair())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the answers."""
        answers = super().result()
        if not answers:
            raise Unavailable("no member has begun a repair: none answered, or was ready")
        return answers


class _StatusChunk(Chunk):
    def __init__(self, operation: StatusOperation, peer: str, question: Message) -> None:
        self.operation = operation
        self.peer = peer
        self.question = question

    def begin(self, now: int) -> list[Send]:
        return [self.operation.ask(self.peer, self, self.question, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, StatusIs):
            self.operation.answers[peer] = message.status
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if isinstance(failure.error, Unauthorised):
            raise failure.error
        self.operation.finish(self)
        return []

    def silent(self, peer: str, now: int) -> list[Send]:
        self.operation.finish(self)
        return []

    def expired(self, error: DStashError) -> None:
        """Those that did not answer are not in the result."""


class _RepairChunk(_StatusChunk):
    patience = _REPAIR_PATIENCE_MS


class DiscoverOperation(Operation):
    """Greets the seed addresses until one answers with its view of the cluster."""

    def __init__(self, session: Session, deadline: int, seeds: Sequence[str], cluster: str) -> None:
        super().__init__(session, deadline)
        self.seeds = seeds
        self.cluster = cluster

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_GreetingChunk(self)]


class _GreetingChunk(Chunk):
    def __init__(self, operation: DiscoverOperation) -> None:
        self.operation = operation
        self._failures: dict[str, DStashError] = {}

    def begin(self, now: int) -> list[Send]:
        self._failures = {}
        hello = Hello(self.operation.cluster)
        return [self.operation.ask(seed, self, hello, now) for seed in self.operation.seeds]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, Welcome) and self.operation.session.view is not None:
            self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        self._failures[peer] = failure.error
        if len(self._failures) < len(self.operation.seeds):
            return []
        hopeless = WrongCluster | Unauthorised | VersionMismatch
        final = [one for one in self._failures.values() if isinstance(one, hopeless)]
        if final:
            raise final[0]
        self.operation.again_later(self, now)
        self.attempt += 1
        return []

    def silent(self, peer: str, now: int) -> list[Send]:
        return []

    def expired(self, error: DStashError) -> None:
        reasons = [str(one).removeprefix(f"{seed}: ") for seed, one in self._failures.items()]
        why = "; ".join(dict.fromkeys(reasons)) or "no answer"
        places = dict.fromkeys(seed.partition(" ")[0] for seed in self.operation.seeds)
        self.operation.error = NoPeers(
            f"no peer answered at {', '.join(places)} ({why}); is it running?"
        )
