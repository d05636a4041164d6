"""A process that owns a store as a peer does, and carries out what a test tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from dstash.store.sharing.places import StorePlace, this_machine
from tests.harness.process import expirable

#: Every partition.
ALL: Final = 4096

_SCRIPT: Final = """
import json, sys, threading, time
from pathlib import Path
from dstash.store.interface import Identity, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.record import head, keyspace
from dstash.store.sealing import locate, seal
from dstash.store.sharing.heartbeat import Heartbeat
from dstash.store.sharing.mark import SERVING_MARK, ServingMark
from dstash.version import pack, stamp_at

store = LmdbStore(Path(sys.argv[1]))
heartbeat = Heartbeat(Path(sys.argv[1]))
space = keyspace(b"i", frozenset(range(4096)))

def adopt(cluster, peer):
    store.adopt(Identity(cluster, peer, store.store_id))
    return store.store_id

def put(key, text, milliseconds):
    payload = b"\\xd9" + bytes((len(text),)) + text.encode()
    version = pack(stamp_at(milliseconds), bytes(8))
    entries = seal(space, [key.encode()], head(version), [payload])
    store.commit([Write(entries, milliseconds, stamp_at(milliseconds))])

def put_payload(key, payload, milliseconds, flags=0, expiry=0):
    version = pack(stamp_at(milliseconds), bytes(8))
    entries = seal(space, [key.encode()], head(version, flags, expiry), [bytes.fromhex(payload)])
    store.commit([Write(entries, milliseconds, stamp_at(milliseconds))])

def mark(ticket, epoch, partitions, cluster_id="id"):
    made = ServingMark(ticket, epoch, cluster_id, frozenset(range(partitions)))
    store.mark(SERVING_MARK, made.encode())

def show(ticket):
    heartbeat.show(ticket, store.generation)

def beat():
    heartbeat.beat()

def beat_often():
    while True:
        try:
            beat()
        except ValueError:  # it has ended
            return
        time.sleep(0.1)

threading.Thread(target=beat_often, daemon=True).start()

def readers():
    return store.readers()[0]

def corrupt(key):
    place = locate(space, [key.encode()])[0]
    record = store.get(place)
    store._write(lambda transaction: transaction.put(place, record[:-1] + b"?", db=store._records))

def set_format(text):
    store._write(lambda transaction: transaction.put(b"format", text.encode(), db=store._meta))

def end():
    heartbeat.close()
    store.close()
    sys.exit()

for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


class Owner:
    """The process. Its store belongs to peer ``a`` of cluster ``c``, and has the index ``i``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = expirable([sys.executable, "-c", _SCRIPT, str(directory)])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.place = StorePlace(this_machine(), str(directory), self.do("adopt", "c", "a"))

    def do(self, name: str, *arguments: Any) -> Any:
        """Let the process call one of its functions; return the result."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{json.dumps([name, *arguments])}\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def serve(self, ticket: int, epoch: int = 5, partitions: int = ALL) -> None:
        """Let others read the first partitions."""
        self.do("show", 0)
        self.do("mark", ticket, epoch, partitions)
        self.do("show", ticket)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
