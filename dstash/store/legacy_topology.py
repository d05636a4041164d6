"""The topology that earlier versions kept in an LMDB file, read in a process of its own.

LMDB maps the file, and touching a map of a file that was cut off ends the process.
``python -m dstash.store.legacy_topology FILE`` writes what is stored to stdout.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

_KEY: Final = b"topology"
#: A counter stands before the topology.
_COUNTER_BYTES: Final = 8
_PATIENCE: Final = 30.0


def read_legacy_topology(path: Path) -> bytes | None:
    """Return the topology (JSON) in an LMDB file; None when there is none, or it cannot be read."""
    command = [sys.executable, "-m", "dstash.store.legacy_topology", os.fspath(path)]
    try:
        done = subprocess.run(  # noqa: S603  # our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout[_COUNTER_BYTES:] or None


def _write_to_stdout(path: str) -> None:
    import lmdb  # here, because few processes ever need it

    options = {"subdir": False, "readonly": True, "lock": False, "create": False}
    with lmdb.open(path, **options) as environment, environment.begin() as transaction:
        sys.stdout.buffer.write(transaction.get(_KEY) or b"")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write_to_stdout(sys.argv[1])
