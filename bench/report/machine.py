"""The environment of a measurement."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench.memory import MIB
from bench.stores.servers import fetched

_PACKAGES = ("dstash", "pyzmq", "lmdb", "msgpack", "xxhash", "redis", "hiredis", "pymemcache")


def describe() -> dict[str, str]:
    """Return machine, versions and date, without the name of the machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = {_shown(name): version(name) for name in _PACKAGES}
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "processor": f"{len(os.sched_getaffinity(0))} cores, {_processor()}",
        "memory": f"{pages / MIB / 1024:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _server_version(f"get-{name}") for name in ("redis", "memcached", "etcd")},
        **packages,
    }


def _shown(package: str) -> str:
    return "redis-py" if package == "redis" else package


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _server_version(script: str) -> str:
    said = subprocess.run([fetched(script), "--version"], capture_output=True, text=True)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout)
    return found[0] if found else "unknown"
