"""Reader for the topology of earlier versions, an LMDB file, in a separate process.

LMDB maps the file, and access to the map of a truncated file ends the process.
``python -m dstash.store.legacy_topology FILE`` writes the stored value to stdout.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

_KEY: Final = b"topology"
#: The counter before the topology.
_COUNTER_BYTES: Final = 8
_TIMEOUT_S: Final = 30.0


def read_legacy_topology(path: Path) -> bytes | None:
    """Return the topology (JSON) in an LMDB file; None if it is missing or unreadable."""
    command = [sys.executable, "-m", "dstash.store.legacy_topology", os.fspath(path)]
    try:
        done = subprocess.run(  # noqa: S603  # our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
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
