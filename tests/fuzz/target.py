"""The target of the fuzzers: a real core with records, on a store in memory."""

from __future__ import annotations

from typing import Final

from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.peer.admission.authority import Authority
from dstash.peer.admission.requests import Reply
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import AdminReply, Put
from dstash.wire.shapes import Frame

NOW: Final = 1_800_000_000_000
EPOCH: Final = 3
_KEYS: Final = Frame(codec.pack_blobs(encode_keys(["a", "b", "c"])))


class Target:
    """Handles messages like a peer, and runs its commits and tasks until they end."""

    def __init__(self, authority: Authority | None = None) -> None:
        store = TwinStore()
        self.core = PeerCore(Settings("p1", "fuzz"), store, NOW - 10_000)
        members = tuple(
            Member(name, f"tcp://127.0.0.1:{port}", f"store-{name}", name, key=key)
            for name, port, key in (("p1", 1, "me"), ("p2", 2, "other"))
        )
        topology = Topology("fuzz", "id", EPOCH, replicas=2, formed=True, members=members)
        self.core.health.not_ready = None
        self.core.install(View(topology, frozenset({"p1", "p2"})), NOW)
        self.hit(encode(Envelope(1, EPOCH, 0, self._put())))
        if authority is not None:
            self.core.admission.authorise(authority)

    def _put(self) -> Put:
        payloads = Frame(codec.pack_blobs([b"\x01", b"\xa1v", b"\xc0"]))
        return Put("i", pack(stamp_at(NOW - 100), bytes(12)), 0, _KEYS, payloads)

    def hit(self, parts: list[bytes], user: str | None = None) -> list[Reply]:
        """Send a message to the core; every answer must be a valid message."""
        replies = self.core.receive(b"sender", parts, NOW, user) + self.drain()
        for reply in replies:
            decode(reply.frames)
        return replies

    def drain(self) -> list[Reply]:
        """Run the pending work of the core."""
        replies = []
        for _ in range(5):
            answers, outgoing = self.core.tick(NOW)
            replies += answers
            for request in outgoing:
                self.core.outgoing.unsent(request)
            while (commit := self.core.next_commit(NOW)) is not None:
                commit.run(self.core.store)
                assert commit.fatal is None
                replies += self.core.committed(commit, NOW)
        for pending in self.core.admin_requests.take():
            replies += pending.answer(AdminReply(b""), NOW)
        self.core.take_proposals()
        assert self.core.failure is None
        return replies

    def content(self) -> list[tuple[bytes, bytes]]:
        """Return all stored records."""
        with self.core.store.snapshot() as snapshot:
            return list(snapshot.walk(b"", b"\xff" * 600))
