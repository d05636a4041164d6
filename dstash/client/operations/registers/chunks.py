"""A part of a change: items with the same home, and the copies of their request.

The outcome of an item is final if any copy of its request was applied, or if the last copy changed
nothing. A negative answer to an earlier copy is ignored: a later copy may be applied (rule D7 of
``docs/atomic.md``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.batching import Item
from dstash.client.operations.registers.answers import Answer, read_answers
from dstash.client.operations.registers.pacing import patience_for
from dstash.client.operations.registers.wanted import RequestId
from dstash.client.refusals import by_peer, error_for, is_for_all
from dstash.client.routing import Peers
from dstash.client.session import Send
from dstash.errors import (
    Busy,
    ClockSkew,
    DStashError,
    Forgotten,
    Refused,
    StaleEpoch,
    TimedOut,
)
from dstash.types import Outcome
from dstash.version import Stamp
from dstash.wire.keys import Key, show_key
from dstash.wire.registers import Change, Changed, ChangeOutcome
from dstash.wire.shapes import Message

APPLIED: Final = frozenset({ChangeOutcome.APPLIED, ChangeOutcome.ANSWER_LOST})
_APPLIED_BYTE: Final = bytes((ChangeOutcome.APPLIED,))
_NOT_APPLIED: Final = frozenset({ChangeOutcome.CONFLICT, ChangeOutcome.UNCHANGED})


class ChangingOperation(Operation):
    """The operation of a ``ChangeChunk``."""

    #: Of the registers.
    index: str
    #: Keys of which a copy may be applied that no chunk has any more.
    uncertain: set[Key]

    @abstractmethod
    def message(self, items: Sequence[Item], request: RequestId, *, repeated: bool) -> Change:
        """Return the request for items."""

    @abstractmethod
    def cut(
        self, items: Sequence[Item], request: RequestId, attempt: int = 0, *, repeated: bool = False
    ) -> list[Chunk]:
        """Return chunks for items, routed by the current view."""

    @abstractmethod
    def new_request(self, past: Stamp = 0) -> RequestId:
        """Return a new id, with a number above ``past`` if that is not in the future."""

    @abstractmethod
    def settle(self, item: Item, answer: Answer) -> None:
        """Record the outcome of a change that was applied, or has certainly changed nothing."""

    @abstractmethod
    def settle_applied(self, items: Sequence[Item], answers: Sequence[Answer]) -> None:
        """Record changes that were all applied."""

    @abstractmethod
    def give_up(self, keys: Sequence[Key], outcome: Outcome, error: DStashError) -> None:
        """Record keys as failed or unknown."""


class Copy(Chunk):
    """One sending of a request: answers to different copies count differently."""

    def __init__(self, chunk: ChangeChunk, places: Sequence[int], *, repeated: bool) -> None:
        self.chunk = chunk
        self.places = places
        self.repeated = repeated
        #: Whether it left this machine.
        self.is_sent = True
        self.epoch = chunk.epoch
        # Two homes that change a key at the same time slow each other down, so each copy waits
        # longer than the one before.
        self.attempt, self.patience = chunk.copies, patience_for(len(places))

    def begin(self, now: int) -> list[Send]:
        """Do nothing: its chunk sends it."""
        return []

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process the outcomes."""
        return self.chunk.decide(self, peer, message, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Process the failure of this copy."""
        return self.chunk.copy_failed(self, failure, now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Process that the peer has not answered in time."""
        return self.chunk.copy_delayed(self, now)

    def expired(self, error: DStashError) -> None:
        """Do nothing: its chunk expires."""


class ChangeChunk(Chunk):
    """Items with the same replicas, whose request is sent to one of them at a time.

    Args:
        operation: that it is a part of.
        homes: the replicas, in the order in which they are asked.
        epoch: of the view that it was routed by.
        items: to change.
        request: the id of the request.
        attempt: number of earlier attempts.
        repeated: whether a copy of the request was sent before.
    """

    def __init__(
        self,
        operation: ChangingOperation,
        homes: Peers,
        epoch: int,
        items: Sequence[Item],
        request: RequestId,
        attempt: int,
        *,
        repeated: bool,
    ) -> None:
        self.operation = operation
        self.homes = homes
        self.epoch: int = epoch
        self.items = items
        self.request = request
        self.attempt = attempt
        self._repeated = repeated
        self._home = 0
        self._left = set(range(len(items)))
        self._last: Copy | None = None
        #: Copies that a home may still apply.
        self._undecided: set[Copy] = set()
        self._is_paused = False
        self._copies = 0
        #: Homes that refuse the request for a lasting reason.
        self._refusals: dict[str, DStashError] = {}

    def begin(self, now: int) -> list[Send]:
        """Send a copy to the present home; reroute if the view has changed."""
        self._is_paused = False
        if self.operation.session.epoch > self.epoch:
            return self._reroute(now)
        copy = self._last = Copy(self, sorted(self._left), repeated=self._repeated)
        self._repeated = True
        self._copies += 1
        self._undecided.add(copy)
        message = self.operation.message(self._items_left(), self.request, repeated=copy.repeated)
        return [self.operation.ask(self.homes[self._home], copy, message, now)]

    @property
    def copies(self) -> int:
        """How many copies were sent."""
        return self._copies

    @property
    def may_be_applied(self) -> bool:
        """Whether any item that is not settled may be changed."""
        return any(map(self._is_unknown, self._left))

    # -- the answers to copies

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Do nothing: answers belong to a copy."""
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Do nothing: failures belong to a copy."""
        return []

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Do nothing: only copies wait for answers."""
        return []

    def decide(self, copy: Copy, peer: str, message: Message, now: int) -> list[Send]:
        """Settle the items that the answer to a copy decides; send the rest again."""
        answers = read_answers(peer, message, len(copy.places))
        self._undecided.discard(copy)
        if len(copy.places) == len(self._left) and _is_all_applied(message):
            items = self._items_left()
            self._left.clear()
            self.operation.settle_applied(items, answers)
            self._end()
            return []
        errors: list[DStashError] = []
        forgotten: dict[int, Stamp] = {}
        for place, answer in zip(copy.places, answers, strict=True):
            if place not in self._left:
                continue
            if answer.outcome in APPLIED:
                self._settle(place, answer)
            elif isinstance(answer.error, TimedOut):
                self.operation.uncertain.add(self.items[place][0])
                errors.append(answer.error)
            elif copy is not self._last:
                continue
            elif answer.outcome in _NOT_APPLIED:
                self._settle(place, answer)
            elif answer.outcome is ChangeOutcome.FORGOTTEN:
                forgotten[place] = answer.version
            else:
                errors += self._rejected(place, peer, answer.error or Refused("no reason given"))
        sends = self._renew(forgotten, now) if forgotten else []
        if not self._left:
            self._end()
        elif copy is self._last and not self._is_paused:
            moves = not all(isinstance(error, Busy) for error in errors)
            sends += self._again(moves=moves, now=now)
        return sends

    def _rejected(self, place: int, peer: str, error: DStashError) -> list[DStashError]:
        """Give up an item that every home refuses; else return the error.

        The home keeps the id of a repeated request that it refused, so no earlier copy is applied.
        """
        if is_for_all(error):
            self._left.discard(place)
            key = self.items[place][0]
            text = f"key {show_key(key)} of index {self.operation.index!r}: {error}"
            self.operation.give_up([key], Outcome.FAILED, error_for(Outcome.FAILED, error, text))
            return []
        if not error.retryable:
            self._refusals[peer] = error
        return [error]

    def _renew(self, past: Mapping[int, Stamp], now: int) -> list[Send]:
        """Send items whose request number is too low again, under another id.

        Only if a single copy was sent: an earlier copy may have been applied before the home
        forgot it.

        Args:
            past: by place, the number that another one must exceed.
            now: milliseconds, by the clock of this machine.
        """
        if self._last is None or self._last.repeated:
            why = Forgotten("the replicas do not know any more whether they applied the request")
            self.operation.uncertain.update(self.items[place][0] for place in past)
            self._give_up(list(past), why)
            return []
        self._left.difference_update(past)
        is_ahead = self.operation.session.is_from_the_future
        ahead = [place for place in past if is_ahead(past[place])]
        others = [place for place in past if place not in ahead]
        # A register takes a number of the future only if it is just above its own.
        groups = [[place] for place in ahead] + ([others] if others else [])
        chunks: list[Chunk] = []
        for places in groups:
            request = self.operation.new_request(max(past[place] for place in places))
            items = [self.items[place] for place in places]
            chunks += self.operation.cut(items, request, self.attempt + 1)
        return self.operation.start_later(chunks, now)

    def copy_failed(self, copy: Copy, failure: Failure, now: int) -> list[Send]:
        """Send the request again after a copy failed, or give it up."""
        error = failure.error
        if failure.definite:
            self._undecided.discard(copy)
        if isinstance(error, StaleEpoch) and self.operation.session.epoch > self.epoch:
            return self._reroute(now)
        if copy is not self._last or self._is_paused:
            return []
        self.retry_after = copy.retry_after
        if not copy.is_sent:
            self._repeated = copy.repeated
        if is_for_all(error):
            self._give_up(sorted(self._left), error)
            self._end()
            return []
        if isinstance(error, ClockSkew) and not copy.repeated:
            sends = self._renew(dict.fromkeys(sorted(self._left), 0), now)
            self._end()
            return sends
        if not error.retryable:
            self._refusals[self.homes[self._home]] = error
        return self._again(moves=not isinstance(error, Busy | StaleEpoch), now=now)

    def copy_delayed(self, copy: Copy, now: int) -> list[Send]:
        """Send another copy to the next replica; the first may still be applied."""
        if copy is not self._last or self._is_paused:
            return []
        return self._again(moves=True, now=now)

    def expired(self, error: DStashError) -> None:
        """Give up the items that are not settled, with the outcome as far as it is known."""
        self._give_up(sorted(self._left), error)

    # -- inside

    def _again(self, *, moves: bool, now: int) -> list[Send]:
        """Send another copy: to the next replica at once, or after a pause to the same or first.

        Args:
            moves: whether to ask the next replica.
            now: milliseconds, by the clock of this machine.
        """
        if all(peer in self._refusals for peer in self.homes):
            text = by_peer(self._refusals)
            self._give_up(sorted(self._left), self._refusals[self.homes[0]], text)
            self._end()
            return []
        if moves:
            self._home = (self._home + 1) % len(self.homes)
            if self._home:
                return self.begin(now)
        self._is_paused = True
        self.operation.again_later(self, now)
        self.attempt += 1
        return []

    def _reroute(self, now: int) -> list[Send]:
        self._forget_copies()
        chunks = self.operation.cut(
            self._items_left(), self.request, self.attempt, repeated=self._repeated
        )
        return self.operation.replace(self, chunks, now)

    def _settle(self, place: int, answer: Answer) -> None:
        self._left.discard(place)
        self.operation.settle(self.items[place], answer)

    def _give_up(self, places: Sequence[int], error: DStashError, text: str = "") -> None:
        unknown = [place for place in places if self._is_unknown(place)]
        failed = [place for place in places if place not in unknown]
        self._left.difference_update(places)
        for outcome, part in ((Outcome.UNKNOWN, unknown), (Outcome.FAILED, failed)):
            if part:
                keys = [self.items[place][0] for place in part]
                self.operation.give_up(keys, outcome, error_for(outcome, error, text))

    def _is_unknown(self, place: int) -> bool:
        """Whether a copy may be applied to an item, or was."""
        is_uncertain = self.items[place][0] in self.operation.uncertain
        return is_uncertain or any(place in copy.places for copy in self._undecided)

    def _items_left(self) -> list[Item]:
        return [self.items[place] for place in sorted(self._left)]

    def _forget_copies(self) -> None:
        """Stop waiting for answers to copies, which may be applied."""
        for copy in self._undecided:
            self.operation.finish(copy)
            self.operation.uncertain.update(
                self.items[place][0] for place in copy.places if place in self._left
            )
        self._undecided.clear()

    def _end(self) -> None:
        self._forget_copies()
        self.operation.finish(self)


def _is_all_applied(message: Message) -> bool:
    """Whether an answer states for each key that its change was applied."""
    return isinstance(message, Changed) and not message.outcomes.strip(_APPLIED_BYTE)
