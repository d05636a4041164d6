"""Look-ups of one key whose answers come at once: one round trip, and few steps around it.

For such a look-up even the objects of a ``ShortLookup`` take longer than the message.
``QuickLookups`` sends the same requests, and waits for each answer on the socket it comes from.
Everything else is left to a ``ShortLookup``, which gets the requests and what was received: an
answer that is late, differs or cannot be decoded, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from xxhash import xxh3_64_intdigest

from dstash.client.local.batches import ASK
from dstash.client.operations.registers.names import check_name
from dstash.client.operations.short.lookup import (
    ShortLookup,
    plain_answer,
    wants,
)
from dstash.client.operations.short.write import take_late_ack
from dstash.client.routing import Peers
from dstash.client.session import Session
from dstash.client.transport.channel import Channel, Find
from dstash.client.transport.combined import MISSING, CombinedRequest, Wanted, take_answers
from dstash.client.transport.combining import Combiner, WaitingCall
from dstash.errors import DStashError
from dstash.limits import MAX_KEY_BYTES
from dstash.store.record import MASK
from dstash.types import Level
from dstash.wire.codec import pack_blobs
from dstash.wire.keys import Key
from dstash.wire.messages import Lookup
from dstash.wire.sockets import Link
from dstash.wire.values import TypeRegistry

_MAX_INDEXES: Final = 32
_LEVELS: Final[dict[object, Level]] = {
    name: level for level in Level for name in (level, level.value)
}
_LEVEL_TYPES: Final = frozenset((str, Level))
#: The most late acks of earlier writes that are read before an answer.
_MAX_LATE_ACKS: Final = 8
#: How long (seconds) a look-up waits for another thread, at most.
_MAX_PATIENCE_S: Final = 0.1


class QuickLookup(Protocol):
    """Look-ups of one key in one round trip."""

    def lookup(self, index: str, key: Key, default: Any, read: str | Level | None) -> Any:
        """Return the value of a key, ``default`` if there is none, or ``ASK``."""


class NoQuickLookups:
    """Quick look-ups that are turned off."""

    def lookup(self, index: str, key: Key, default: Any, read: str | Level | None) -> Any:
        """Return ``ASK``."""
        return ASK


class QuickLookups:
    """The quick look-ups of a client in one process. Safe for any number of threads.

    Args:
        session: the state that the calls of the client share.
        types: decodes values.
        level: of look-ups that name none.
        timeout: of a call, in seconds.
        lend: lends a channel to the calling thread, by a deadline.
        find: creates the operation that finds the cluster, in case every member has moved.
    """

    def __init__(
        self,
        session: Session,
        types: TypeRegistry,
        level: Level,
        timeout: float,
        lend: Callable[[int], AbstractContextManager[Channel]],
        find: Find,
    ) -> None:
        self._session = session
        self._types = types
        self._level = level
        self._timeout_ms = max(1, round(timeout * 1000))
        self._lend = lend
        self._find = find
        self._process = session.process()
        #: Whether an index has registers, for those that were used before.
        self._known: dict[str, bool] = {}
        self._combiner = Combiner(self._look_up_all, min(_MAX_PATIENCE_S, timeout / 10))

    def lookup(self, index: str, key: Key, default: Any, read: str | Level | None) -> Any:
        """Return the value of a key, ``default`` if there is none, or ``ASK``.

        ``ASK`` means that no look-up was begun, for example because of its arguments.
        """
        session = self._session
        if type(key) is not str or type(index) is not str or session.process() != self._process:
            return ASK
        if read is None:
            level: Level | None = self._level
        else:
            level = _LEVELS.get(read) if type(read) in _LEVEL_TYPES else None
        has_registers = self._known.get(index)
        if has_registers is None:
            has_registers = self._learn(index)
        if level is None or has_registers is None or not key.isascii():
            return ASK
        if has_registers and level is not Level.ONE:
            return ASK
        now, encoded = session.wall(), key.encode()
        table = session.calm_table(level, now)
        if table is None or not 0 < len(encoded) <= MAX_KEY_BYTES:
            return ASK
        targets = table[xxh3_64_intdigest(encoded) & MASK]
        if not targets:
            return ASK
        wanted = Wanted(now + self._timeout_ms, index, key, encoded, level, targets, table.epoch)
        found = self._combiner.call(wanted, self._look_up)
        return default if found is MISSING else found

    # -- inside

    def _learn(self, index: str) -> bool | None:
        """Return whether an index has registers; None if the name is not allowed."""
        try:
            has_registers = check_name(index)
        except DStashError:
            return None  # the general way reports it
        if len(self._known) >= _MAX_INDEXES:
            self._known = {}
        self._known[index] = has_registers
        return has_registers

    def _look_up(self, wanted: Wanted) -> Any:
        """Return the value of a key, or ``MISSING``."""
        with self._lend(wanted.deadline) as channel:
            return self._look_up_on(channel, wanted, self._session.wall())

    def _look_up_on(self, channel: Channel, wanted: Wanted, now: int) -> Any:
        session, targets = self._session, wanted.targets
        links = channel.quick_links(targets, now)
        asked: dict[int, str] = {}
        received: list[tuple[str, list[bytes]]] = []
        if links is not None and self._sent(links, wanted, (wanted.encoded,), asked):
            frame = self._answer(links, targets, asked, now, received)
            if frame is None:
                return MISSING
            try:
                values = self._types.decode_array(frame) if frame else ()
            except DStashError:  # the general way names the key in its error
                values = ()
            if len(values) == 1:
                session.learn_size(len(frame))
                return values[0]
        call = ShortLookup(
            session,
            wanted.deadline,
            wanted.name,
            wanted.key,
            wanted.encoded,
            wanted.level,
            self._types.decode_values,
        )
        if asked:
            call.resume(targets, wanted.epoch, asked, now)
        return channel.run(call, self._find, received).get(wanted.key, MISSING)

    def _sent(
        self, links: list[Link], wanted: Wanted, keys: Sequence[bytes], asked: dict[int, str]
    ) -> bool:
        """Send the requests, and note them; if one cannot be sent, none is noted."""
        session, targets = self._session, wanted.targets
        body = (pack_blobs(keys),)
        for peer, link, want in zip(targets, links, wants(session, targets), strict=True):
            number = session.next_correlation()
            fields = (wanted.name, want)
            request = session.short_request(
                peer, number, wanted.deadline, wanted.epoch, Lookup.KIND, fields, body
            )
            if not link.send(request.frames):
                asked.clear()
                return False
            asked[number] = peer
        return True

    def _answer(
        self,
        links: list[Link],
        targets: Peers,
        asked: dict[int, str],
        sent_at: int,
        received: list[tuple[str, list[bytes]]],
    ) -> bytes | None:
        """Return the value in an array; None if there is none, empty if the call is not plain.

        Args:
            links: to the targets.
            targets: that were asked.
            asked: peer by the correlation id of its request.
            sent_at: when they were asked.
            received: gets what was received.
        """
        session = self._session
        first = None
        for peer, link in zip(targets, links, strict=True):
            parts = link.await_message()
            for _ in range(_MAX_LATE_ACKS):
                if parts is None or not take_late_ack(session, peer, parts):
                    break
                parts = link.await_message()
            if parts is None:
                return b""
            answer = plain_answer(parts)
            if answer is None and link.has_changed:
                link.put_back(parts)  # the change precedes it
                return b""
            received.append((peer, parts))
            if answer is None or asked.get(answer.correlation) != peer or answer.answered != 1:
                return b""
            session.learn_clock(peer, answer.moment, sent_at, session.wall())
            if first is None:
                first = answer
            elif answer.digest != first.digest:
                return b""
        if first is None or first.missing not in ([], [0]):
            return b""
        return None if first.missing else first.values

    # -- look-ups of several threads

    def _look_up_all(self, calls: list[WaitingCall]) -> None:
        """Set the outcomes of look-ups: values, or ``MISSING``; the others keep ``ASK``."""
        if len(calls) == 1:
            [call] = calls
            call.outcome = self._look_up(call.wanted)
            return
        groups: dict[tuple[str, Peers, int], list[WaitingCall]] = {}
        for call in calls:
            wanted = call.wanted
            groups.setdefault((wanted.name, wanted.targets, wanted.epoch), []).append(call)
        with self._lend(calls[0].wanted.deadline) as channel:
            now = self._session.wall()
            requests = [self._ask_for(channel, group, now) for group in groups.values()]
            sent = [request for request in requests if request is not None]
            take_answers(sent, self._session, self._types, now)

    def _ask_for(
        self, channel: Channel, calls: list[WaitingCall], now: int
    ) -> CombinedRequest | None:
        """Send the request for the keys of some calls to their targets; None if it is not sent."""
        first: Wanted = calls[0].wanted
        links = channel.quick_links(first.targets, now)
        asked: dict[int, str] = {}
        keys = [call.wanted.encoded for call in calls]
        if links is None or not self._sent(links, first, keys, asked):
            return None
        return CombinedRequest(calls, links, asked, {})
