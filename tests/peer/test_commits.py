"""What a peer refuses of a put, whatever the client let pass."""

from __future__ import annotations

import pytest

from dstash.errors import LimitError
from dstash.limits import MAX_TTL_SECONDS, PARTITIONS
from dstash.peer.commits import Commit, Rules, Ticket, WaitingWrite
from dstash.store.record import keyspace
from dstash.store.twin import TwinStore
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.messages import Error, Put, Stored
from dstash.wire.shapes import Frame

NOW = 1_800_000_000_000
EVERYTHING = frozenset(range(PARTITIONS))
RULES = Rules(NOW, 500, 0, {}, [0] * PARTITIONS, EVERYTHING, has_room=True)


def reply_to(put: Put) -> object:
    """Return what a peer answers to a put."""
    write = WaitingWrite(Ticket(b"client", 1), put, keyspace(b"i", EVERYTHING), 10)
    commit = Commit([write], RULES)
    commit.run(TwinStore())
    [(_, reply)] = commit.replies
    return reply


@pytest.mark.parametrize(
    ("expiry", "refused"),
    [(0, False), (NOW + 1000, False), (NOW + MAX_TTL_SECONDS * 1000 + 1, True)],
)
def test_a_put_that_outlives_a_century_is_refused(expiry: int, refused: bool) -> None:
    keys = Frame(codec.pack_blobs([b"k"]))
    put = Put("i", pack(stamp_at(NOW), b"test"), expiry, keys, Frame(codec.pack_blobs([b"\x01"])))
    reply = reply_to(put)
    if refused:
        assert isinstance(reply, Error)
        assert isinstance(reply.error(), LimitError)
    else:
        assert isinstance(reply, Stored)
        assert reply.rejected == []
