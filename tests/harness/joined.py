"""Client core and peer cores joined in memory, without sockets, clocks and randomness.

Messages are exchanged until none is left. A test decides which peers are down or silent, and the
time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from dstash.client.operations.base import Operation
from dstash.client.operations.batch_lookup import BatchLookup
from dstash.client.operations.drafts import Query
from dstash.client.operations.indexes.requests import DropOperation, IndexSettingsOperation
from dstash.client.operations.reads import ExistsOperation
from dstash.client.operations.walks import Request, walk_for
from dstash.client.operations.writes import DeleteOperation, PutOperation
from dstash.client.session import Send, Session
from dstash.cluster.topology.announcement import FEATURES
from dstash.cluster.topology.drop_steps import with_drop
from dstash.cluster.topology.indexes.steps import with_settings
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.peer.admission.requests import Reply
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from dstash.store.record import build_record, keyspace, open_record
from dstash.store.sealing import locate
from dstash.types import Level
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import (
    AdminReply,
    DropRequest,
    Error,
    IndexesRequest,
    IndexSettingsRequest,
    Scan,
)
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL
from dstash.wire.shapes import Message
from dstash.wire.values import TypeRegistry

TYPES = TypeRegistry()
START = 1_700_000_000_000


class Joined:
    """A cluster in memory and a client.

    ``down`` peers refuse connections, ``silent`` peers accept messages and never answer. ``tamper``
    may change a request to a peer; it returns None to lose it. ``tamper_answer`` may change the
    answer of a peer to the client. ``unaware`` peers do not get a topology that a client changed.
    ``registers``: whether the cluster serves them. ``offsets`` is how far the clocks of peers are
    ahead
    (milliseconds).
    """

    def __init__(
        self, names: str = "abc", replicas: int = 3, *, registers: bool = False, **settings: Any
    ) -> None:
        self.now = START
        self.offsets: dict[str, int] = {}
        members = tuple(
            Member(peer, f"tcp://{peer}:1", f"store-{peer}", f"z-{peer}", features=FEATURES)
            for peer in names
        )
        self.topology = Topology(
            "c",
            "id",
            5,
            replicas,
            formed=True,
            members=members,
            min_peers=len(names),
            registers=registers,
        )
        self.stores = {name: TwinStore(f"store-{name}") for name in names}
        self.peers = {
            name: PeerCore(Settings(name, "c", **settings), store, self.now)
            for name, store in self.stores.items()
        }
        self.down: set[str] = set()
        self.silent: set[str] = set()
        self.unaware: set[str] = set()
        #: Peers that accept messages of other peers and never answer them.
        self.mute: set[str] = set()
        self.tamper: Callable[[str, Envelope], Envelope | None] = lambda peer, envelope: envelope
        self.tamper_answer: Callable[[Envelope], Envelope] = lambda envelope: envelope
        self.asked: list[tuple[str, Envelope]] = []
        self._answers: deque[tuple[str, list[bytes]]] = deque()
        self.now += 1000  # after the start: earlier stamps are refused
        for core in self.peers.values():
            core.health.not_ready = None
        self.install(self.topology)
        self.settle()
        self.session = Session(lambda: self.now, random_bytes=bytes)
        self.session.install(self.topology.encode(), list(names))
        for name in names:  # otherwise its first write would start by reading their clocks
            self.session.learn_clock(name, self.now, self.now, self.now)
        for name in names:  # as each peer reports when it is connected
            self.session.learn_protocol(name, LOWEST_PROTOCOL, HIGHEST_PROTOCOL)

    # -- peers

    def install(self, topology: Topology, *names: str) -> None:
        """Install a topology on peers (default: all)."""
        for name in names or self.peers:
            view = View(topology, frozenset(self.peers))
            self._answer_each(name, self.peers[name].install(view, self.time_at(name)))

    def time_at(self, name: str) -> int:
        """Return the time on the clock of a peer."""
        return self.now + self.offsets.get(name, 0)

    def restart(self, name: str) -> None:
        """Restart a peer with its store."""
        settings = self.peers[name].settings
        core = PeerCore(settings, self.stores[name], self.time_at(name))
        core.health.not_ready = None
        self.peers[name] = core
        self.install(self.topology, name)

    def settle(self) -> None:
        """Exchange messages between peers until none is left."""
        for _ in range(50):
            if sum(map(self._tick, self.peers)) == 0:
                return

    def _tick(self, name: str) -> bool:
        core = self.peers[name]
        replies, outgoing = core.tick(self.time_at(name))
        self._answer_each(name, replies)
        for request in outgoing:
            core_of_other = self.peers.get(request.peer)
            if core_of_other is None or request.peer in self.down:
                core.outgoing.unsent(request)
                continue
            if request.peer in self.mute or name in self.mute:
                continue
            sender = f"{name}:{request.correlation}".encode()
            answers = core_of_other.receive(sender, request.frames, self.time_at(request.peer))
            self._answer_each(request.peer, answers)
        self._commit(name)
        return bool(replies or outgoing or core.scheduler.has_ready)

    def _commit(self, name: str) -> None:
        core = self.peers[name]
        while (commit := core.next_commit(self.time_at(name))) is not None:
            commit.run(self.stores[name])
            self._answer_each(name, core.committed(commit, self.time_at(name)))

    def _answer_each(self, name: str, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.to == b"client":
                self._answers.append((name, reply.frames))
            elif reply.to:
                asker = reply.to.decode().split(":")[0]
                if asker in self.peers:  # a test may take a peer out
                    core = self.peers[asker]
                    core.answered(name, reply.frames, self.time_at(asker))

    # -- the client

    def run(self, operation: Operation, begun: Iterable[Send] = ()) -> Any:
        """Run a call to its end; time passes only when no message is left.

        When it does, the peers exchange messages, too. Late answers to an earlier call are read
        first, as from a connection. ``begun`` has the requests that the call has sent before.
        """
        sends: deque[Send] = deque(begun)
        while not operation.done:
            if operation.hungry:
                sends.extend(operation.more(self.now))
            while sends or self._answers:
                self._move(operation, sends)
            if not operation.done and not operation.hungry:
                self.now = max(self.now, operation.wakeup())
                self.settle()
                sends.extend(operation.tick(self.now))
        return operation.result()

    def _move(self, operation: Operation, sends: deque[Send]) -> None:
        if sends:
            sends.extend(self._deliver(operation, sends.popleft()))
            return
        name, frames = self._answers.popleft()
        sends.extend(operation.receive(name, self.tamper_answer(decode(frames)), self.now))

    def _deliver(self, operation: Operation, send: Send) -> list[Send]:
        envelope = decode(send.frames)
        self.asked.append((send.peer, envelope))
        if send.peer in self.down:
            return operation.unsent(send, self.now)
        changed = self.tamper(send.peer, envelope)
        if send.peer in self.silent or changed is None:
            return []
        core = self.peers[send.peer]
        frames = send.frames if changed is envelope else changed_frames(changed)
        self._answer_each(send.peer, core.receive(b"client", frames, self.time_at(send.peer)))
        self._carry_out_requests(send.peer)
        self._commit(send.peer)
        if isinstance(changed.message, IndexesRequest):  # a task answers it
            while self._tick(send.peer):
                pass
        return []

    def _carry_out_requests(self, name: str) -> None:
        """Change the topology as the membership agent of a peer does when a client requests it."""
        for pending in self.peers[name].admin_requests.take():
            request = pending.request
            answer: Message
            try:
                if isinstance(request, DropRequest):
                    changed = with_drop(self.topology, request.index, request.prefix, request.stamp)
                elif isinstance(request, IndexSettingsRequest):
                    changed = with_settings(
                        self.topology, request.index, request.settings, request.stamp
                    )
                else:
                    continue
                self.change(changed)
                answer = AdminReply(changed.encode())
            except DStashError as error:
                answer = Error.of(error)
            self._answer_each(name, pending.answer(answer, self.time_at(name)))

    def change(self, topology: Topology) -> None:
        """Give a topology to all peers that hear of it."""
        self.topology = topology
        self.install(topology, *(name for name in self.peers if name not in self.unaware))

    def drop(self, index: str = "i", prefix: bytes = b"", timeout: int = 5000) -> None:
        """Drop an index, or the keys with a prefix."""
        self.run(DropOperation(self.session, self.now + timeout, index, prefix))

    def set_index(self, index: str = "i", timeout: int = 5000, **settings: int) -> None:
        """Change settings of an index, in milliseconds."""
        deadline = self.now + timeout
        self.run(IndexSettingsOperation(self.session, deadline, index, settings))

    def put(
        self,
        entries: dict[str, Any],
        level: str = "quorum",
        timeout: int = 5000,
        ttl: int | None = None,
    ) -> Any:
        """Store values, for ``ttl`` milliseconds; return the ``BatchResult``."""
        keys = list(entries)
        payloads = TYPES.encode_many(list(entries.values()))
        items: list[Any] = list(zip(keys, encode_keys(keys), payloads, strict=True))
        deadline = self.now + timeout
        return self.run(PutOperation(self.session, deadline, "i", Level(level), items, ttl))

    def delete(self, *keys: str, level: str = "quorum") -> Any:
        """Delete keys; return the ``BatchResult``."""
        items: list[Any] = [(key, key.encode(), b"") for key in keys]
        return self.run(DeleteOperation(self.session, self.now + 5000, "i", Level(level), items))

    def lookup(self, *keys: str, level: str = "quorum", timeout: int = 5000) -> dict[Any, Any]:
        """Look up keys."""
        deadline, decode = self.now + timeout, TYPES.decode_values
        operation = BatchLookup(self.session, deadline, "i", list(keys), Level(level), decode)
        found: dict[Any, Any] = self.run(operation)
        return found

    def exists(self, *keys: str, level: str = "quorum") -> dict[Any, Any]:
        """Return which keys exist."""
        operation = ExistsOperation(
            self.session, self.now + 5000, "i", list(keys), Level(level), TYPES.decode_values
        )
        found: dict[Any, Any] = self.run(operation)
        return found

    def scan(self, level: str = "one") -> dict[Any, Any]:
        """Scan the index for keys and values; each key must occur once."""
        pairs = self.walk(Scan, level)
        found = dict(pairs)
        assert len(found) == len(pairs)
        return found

    def walk(
        self, request: Request, level: str, prefix: bytes = b"", timeout: int = 5000
    ) -> list[Any]:
        """Scan the index; return what was delivered."""
        walk = walk_for(request, Query("i", prefix, Level(level), TYPES.decode_values))
        found: list[Any] = []
        while not walk.done:
            operation = walk.operation(self.session, self.now + timeout)
            found += walk.take(self.run(operation)) or []
        return found

    # -- records on disk

    def place(self, key: str) -> bytes:
        """Return the storage key of a key."""
        return locate(keyspace(b"i", frozenset(range(4096))), [key.encode()])[0]

    def record(self, peer: str, key: str) -> bytes | None:
        """Return the record that a peer has stored."""
        return self.stores[peer].records.get(self.place(key))

    def corruption(self, peer: str, key: str) -> None:
        """Flip a bit of a record."""
        place = self.place(key)
        record = bytearray(self.stores[peer].records[place])
        record[-1] ^= 1
        self.stores[peer].records[place] = bytes(record)

    def alter(self, peer: str, key: str, how: Callable[[bytes], bytes]) -> None:
        """Change a record on disk."""
        place = self.place(key)
        self.stores[peer].records[place] = how(self.stores[peer].records[place])

    def expire(self, peer: str, key: str, expiry: int) -> None:
        """Change the expiry of a record on disk."""
        record = open_record(self.record(peer, key) or b"")
        whole = build_record(b"i", key.encode(), record._replace(expiry=expiry))
        self.stores[peer].records[self.place(key)] = whole

    def forget(self, peer: str, *keys: str) -> None:
        """Remove keys from a peer."""
        for key in keys:
            self.stores[peer].records.pop(self.place(key), None)


def changed_frames(envelope: Envelope) -> list[bytes]:
    """Return the frames of a message."""
    return encode(envelope)
