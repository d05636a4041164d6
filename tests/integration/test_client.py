"""The client against real peers: normal use, invalid use, threads and processes."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import pytest
import xxhash
import zmq
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from dstash import Client
from dstash.errors import (
    ClosedError,
    DStashError,
    LimitError,
    NoPeers,
    UndecodableValue,
    UnsupportedType,
    UsageError,
)
from tests.harness.peers import Peers
from tests.harness.ports import free_port

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def client(trio: Peers) -> Iterator[Client]:
    with Client(trio["a"].address, timeout=20) as client:
        yield client


@pytest.fixture
def thorough(trio: Peers) -> Iterator[Client]:
    """A client with write level all, because scans at level one ask one replica."""
    with Client(trio["a"].address, timeout=20, write="all") as client:
        yield client


class TestModel:
    def test_index_behaves_like_a_dictionary(self, thorough: Client) -> None:
        names = iter(range(10**6))
        keys = st.sampled_from(["a", "b", "ü", b"a", 1, -1, "1"])
        values = st.none() | st.integers() | st.text(max_size=9) | st.tuples(st.booleans())

        class Machine(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.index = thorough.index(f"model-{next(names)}")
                self.model: dict[Any, Any] = {}

            @rule(key=keys, value=values)
            def put(self, key: Any, value: Any) -> None:
                self.index[key] = value
                self.model[key] = value

            @rule(key=keys)
            def delete(self, key: Any) -> None:
                assert self.index.delete(key) == (key in self.model)
                self.model.pop(key, None)

            @rule(key=keys)
            def lookup(self, key: Any) -> None:
                assert self.index.lookup(key, "nothing") == self.model.get(key, "nothing")
                assert (key in self.index) == (key in self.model)

            @rule(entries=st.dictionaries(keys, values, max_size=5))
            def batch_put(self, entries: dict[Any, Any]) -> None:
                self.index.batch_put(entries).raise_for_failures()
                self.model.update(entries)

            @rule(some=st.lists(keys, max_size=6))
            def batch_lookup(self, some: list[Any]) -> None:
                wanted = {key: self.model[key] for key in some if key in self.model}
                assert self.index.batch_lookup(some) == wanted

            @rule(some=st.lists(keys, max_size=3))
            def batch_delete(self, some: list[Any]) -> None:
                there = {key for key in some if key in self.model}
                assert self.index.batch_delete(some).deleted == len(there)
                for key in there:
                    del self.model[key]

            @rule(key=keys, value=values)
            def put_for_a_moment(self, key: Any, value: Any) -> None:
                self.index.put(key, value, ttl=0.001)
                self.model.pop(key, None)
                time.sleep(0.005)  # until it expires

            @rule(key=keys)
            def touch(self, key: Any) -> None:
                assert self.index.touch(key, ttl=1000) == (key in self.model)

            @rule()
            def walk(self) -> None:
                assert dict(self.index.items()) == self.model
                assert set(self.index) == set(self.model)
                assert len(self.index) == len(self.model)

        Machine.TestCase.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
        Machine.TestCase().runTest()


class TestBatches:
    def test_batch_larger_than_a_message_round_trips(self, thorough: Client) -> None:
        client = thorough
        large = {f"large-{n}": os.urandom(1 << 20) for n in range(24)}
        client.batch_put("large", large).raise_for_failures()
        for level in ("one", "quorum", "all"):
            assert client.batch_lookup("large", large, read=level) == large
        assert dict(client.items("large")) == large

    def test_largest_value_round_trips(self, client: Client) -> None:
        largest = bytes(8 * 1024 * 1024 - 5)
        client.put("i", "largest", largest)
        assert client.lookup("i", "largest") == largest
        with pytest.raises(LimitError):
            client.put("i", "too large", largest + b"x")

    def test_batch_of_many_keys_round_trips(self, thorough: Client) -> None:
        client = thorough
        many = {f"key-{n}": n for n in range(50_000)}
        assert client.batch_put("many", many).stored == len(many)
        assert client.batch_lookup("many", [*many, "missing"]) == many
        assert client.count("many") == len(many)
        assert sum(1 for _ in client.keys("many", "key-1")) == 11_111
        assert client.batch_delete("many", many).deleted == len(many)
        assert client.count("many") == 0

    def test_empty_batches_do_nothing(self, client: Client) -> None:
        assert client.batch_put("i", {}).ok
        assert client.batch_lookup("i", []) == {}
        assert client.batch_delete("i", []).deleted == 0
        assert list(client.items("never used")) == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "error"),
        [
            (lambda c: c.put("", "k", 1), LimitError),
            (lambda c: c.put("x" * 65, "k", 1), LimitError),
            (lambda c: c.put("a\nb", "k", 1), LimitError),
            (lambda c: c.put("i", "", 1), LimitError),
            (lambda c: c.put("i", "k" * 401, 1), LimitError),
            (lambda c: c.put("i", None, 1), UnsupportedType),
            (lambda c: c.put("i", "k", object()), UnsupportedType),
            (lambda c: c.put("i", "k", 1, ttl=0), LimitError),
            (lambda c: c.put("i", "k", 1, ttl=-1), LimitError),
            (lambda c: c.put("i", "k", 1, ttl=float("nan")), LimitError),
            (lambda c: c.put("i", "k", 1, ttl=float("inf")), LimitError),
            (lambda c: c.put("i", "k", 1, timeout=0), LimitError),
            (lambda c: c.put("i", "k", 1, write="most"), DStashError),
            (lambda c: c.put("i", "k", 1, timeout=1e300), LimitError),
            (lambda c: c.put("i", "k", 1, timeout=True), LimitError),
            (lambda c: c.put("i", bytearray(b"k"), 1), UnsupportedType),
            (lambda c: c.batch_put("i", [(["k"], 1)]), UnsupportedType),
            (lambda c: c.batch_put("i", ["key"]), UsageError),
            (lambda c: c.batch_put("i", [("k", 1, 2)]), UsageError),
            (lambda c: c.batch_lookup("i", "key"), LimitError),
            (lambda c: c.count("i", "\ud800"), LimitError),
        ],
    )
    def test_invalid_arguments_raise_before_anything_is_sent(
        self, call: Any, error: type[Exception]
    ) -> None:
        with Client(f"tcp://127.0.0.1:{free_port()}") as client, pytest.raises(error):
            call(client)

    def test_unused_port_raises_no_peers(self) -> None:
        address = f"tcp://127.0.0.1:{free_port()}"
        with Client(address, timeout=0.5) as client, pytest.raises(NoPeers, match=address):
            client.lookup("i", "k")

    def test_foreign_server_raises_no_peers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            with Client(address, timeout=0.5) as client, pytest.raises(NoPeers):
                client.lookup("i", "k")

    def test_peer_of_another_cluster_is_named(self, trio: Peers) -> None:
        with (
            Client(trio["a"].address, cluster="other", timeout=5) as client,
            pytest.raises(DStashError, match="this is cluster 'dstash', not 'other'"),
        ):
            client.lookup("i", "k")


class TestThreadsAndProcesses:
    def test_many_threads_share_one_client(self, client: Client) -> None:
        def work(thread: int) -> None:
            for number in range(30):
                key = f"{thread}-{number}"
                client.put("threads", key, key, write="all")  # regardless of the counting thread
                assert client.lookup("threads", key) == key

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        assert client.count("threads") == 16 * 30

    def test_closed_client_raises(self, trio: Peers) -> None:
        client = Client(trio["a"].address)
        client.put("i", "k", 1)
        client.close()
        client.close()
        with pytest.raises(ClosedError):
            client.lookup("i", "k")

    def test_close_ends_calls_of_other_threads(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = Client(f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout=60)
            errors: list[BaseException] = []

            def call() -> None:
                try:
                    client.lookup("i", "k")
                except DStashError as error:
                    errors.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            time.sleep(0.3)  # until it waits, which is not observable
            client.close()
            thread.join(timeout=10)
            assert not thread.is_alive()
            assert [type(error) for error in errors] == [ClosedError]

    def test_forked_child_opens_its_own_connections(self, client: Client) -> None:
        client.put("i", "parent", 1)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                assert client.lookup("i", "parent", timeout=10) == 1
                client.put("i", "child", 2, timeout=10)
                client.close()
                os.write(write, b"done")
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        _, status = os.waitpid(pid, 0)
        assert os.read(read, 10) == b"done"
        os.close(read)
        assert status == 0
        assert client.lookup("i", "child") == 2
        client.put("i", "parent", 3)
        assert client.lookup("i", "parent") == 3

    def test_admin_created_before_fork_works_in_child(self, trio: Peers) -> None:
        admin = trio.client().admin  # by a client that has made no call
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
            pid = os.fork()
        if pid == 0:
            text = "failed"
            try:
                text = str(admin.remove(["c"], dry_run=True, timeout=10).change is not None)
            except BaseException as error:
                text = repr(error)
            finally:
                os.write(write, text.encode())
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as answer:
            assert answer.read() == "True"


class TestOtherLanguages:
    """A client written from docs/protocol.md without dstash's code."""

    def ask(self, peer: zmq.Socket[bytes], kind: int, epoch: int, *fields: Any) -> Any:
        plain = [field for field in fields if type(field) is not Body]
        deadline = int(time.time() * 1000) + 10_000
        header = [1, kind, 7, epoch, deadline, *plain]
        frames = [field.data for field in fields if type(field) is Body]
        peer.send_multipart([msgpack.packb(header), *frames])
        assert peer.poll(10_000)
        header, *body = peer.recv_multipart()
        reply = msgpack.unpackb(header)
        assert reply[0] == 1
        assert reply[2] == 7
        return reply[1], reply[5:], body

    def test_client_written_from_protocol_page_writes_and_reads(
        self, trio: Peers, client: Client
    ) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            peer.connect(trio["b"].address)
            kind, welcome, _ = self.ask(peer, 1, 0, "dstash", 1, 1, "a test")
            assert kind == 2
            topology = json.loads(welcome[5])
            epoch = topology["epoch"]
            stamp = int(time.time() * 1000) << 16
            version = struct.pack(">Q4sQ", stamp, os.urandom(4), 0)
            keys = Body(msgpack.packb([b"written", b"elsewhere"]))
            payloads = Body(msgpack.packb([msgpack.packb("by hand"), msgpack.packb([1, None])]))
            kind, stored, _ = self.ask(peer, 14, epoch, "hand", version, 0, keys, payloads)
            assert (kind, stored[0]) == (15, [])
            kind, found, body = self.ask(peer, 10, epoch, "hand", 3, keys)
            assert kind == 11
            assert found[0] == 2
            assert found[1] == xxhash.xxh3_128_digest(version + version)
            assert msgpack.unpackb(body[0]) == ["by hand", [1, None]]
            kind, error, _ = self.ask(peer, 14, epoch - 1, "hand", version, 0, keys, payloads)
            assert (kind, error[0]) == (3, 21)
            assert json.loads(error[2]["topology"])["epoch"] == epoch
            assert client.lookup("hand", "written", read="all") == "by hand"

    def test_invalid_data_of_other_client_does_not_break_scans(
        self, trio: Peers, client: Client
    ) -> None:
        """Keys that are not text, and values that only look like msgpack."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            peer.connect(trio["b"].address)
            epoch = client.status()["epoch"]
            version = struct.pack(">Q4sQ", int(time.time() * 1000) << 16, b"evil", 0)
            nonsense = {
                b"text": b"\xa2\xc3\x28",
                b"date": msgpack.packb(msgpack.ExtType(100, b"?")),
            }
            keys = Body(msgpack.packb(list(nonsense)))
            self.ask(
                peer,
                14,
                epoch,
                "evil",
                version,
                0,
                keys,
                Body(msgpack.packb(list(nonsense.values()))),
            )
            for key in nonsense:
                with pytest.raises(UndecodableValue, match=f"key '{key.decode()}'"):
                    client.lookup("evil", key.decode())
            client.put("evil", "text", "repaired")
            assert client.lookup("evil", "text") == "repaired"


class Body:
    """A body frame."""

    def __init__(self, data: bytes) -> None:
        self.data = data
