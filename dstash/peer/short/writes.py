"""Puts of one key, accepted in few steps; see ``reads.py``.

Such a put waits for the next commit like all writes, but with its record, made on arrival. What the
dispatch might refuse or change is left to it; what depends on the time of the commit is checked
there again.
"""

from __future__ import annotations

from typing import Final

from dstash.errors import DStashError, ProtocolError
from dstash.limits import MAX_KEY_BYTES
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.short.checks import ShortChecks
from dstash.peer.telemetry.meters import Meters
from dstash.store.record import head
from dstash.store.sealing import seal
from dstash.version import VERSION_BYTES
from dstash.wire import codec
from dstash.wire.messages import Put
from dstash.wire.shapes import Frame

#: The fields of the header of a ``Put`` that replaces no version, without a trace.
_HEADER_FIELDS: Final = 8
_COUNTED: Final = (Put.__name__, "", "Accepted")


class ShortWrites:
    """Accepts the puts of one peer that need no dispatch.

    Args:
        checks: of requests for one key.
        floor: decides which writes are too old.
        backlog: the writes that wait for the disk.
        meters: count requests.
    """

    def __init__(
        self, checks: ShortChecks, floor: WriteFloor, backlog: Backlog, meters: Meters
    ) -> None:
        self._checks = checks
        self._floor = floor
        self._backlog = backlog
        self._meters = meters

    def accept(self, sender: bytes, parts: list[bytes], now: int) -> bool:
        """Queue a write for the next commit, which answers it; False: it needs the dispatch.

        Args:
            sender: the routing id of the connection.
            parts: the frames of a message of any kind.
            now: this peer's own clock, in milliseconds since 1970.
        """
        if len(parts) != 3:
            return False
        key, payload = codec.only_blob(parts[1]), codec.only_blob(parts[2])
        if not key or not payload or len(key) > MAX_KEY_BYTES:
            return False
        try:
            header = codec.unpack_header(parts[0])
        except ProtocolError:
            return False
        if len(header) != _HEADER_FIELDS or header[1] != Put.KIND:
            return False
        protocol, _, correlation, epoch, moment, index, version, expiry = header
        checks = self._checks
        if (
            type(version) is not bytes
            or type(expiry) is not int
            or len(version) != VERSION_BYTES
            or expiry < 0
            or not checks.passes(protocol, correlation, epoch, moment)
            or (moment and moment < now)
        ):
            return False
        space = checks.space(index)
        if space is None or index in checks.with_settings or codec.malformed_payloads([payload]):
            return False
        weight = len(parts[1]) + len(parts[2])
        if not self._backlog.has_room(weight):
            return False
        try:
            self._floor.check(index, version, now)
            [entry] = seal(space, [key], head(version, 0, expiry), [payload])
        except DStashError:
            return False
        message = Put(index, version, expiry, Frame(parts[1]), Frame(parts[2]))
        ticket = Ticket(sender, correlation, protocol)
        self._backlog.add(WaitingWrite(ticket, message, space, weight, entry=entry))
        self._backlog.served()
        self._meters.requests[_COUNTED] += 1
        return True
