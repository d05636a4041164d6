"""Small file systems that a test can fill completely and free again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

from tests.harness.process import expirable
from tests.harness.waiting import wait_until


class SmallDisk:
    """A tmpfs in a mount namespace that outlives its processes.

    Args:
        folder: its path, for processes started with ``command``.
        size: in bytes.

    Raises:
        AssertionError: this user can mount no tmpfs, neither directly nor in a user namespace.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        mount = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && echo mounted && exec sleep inf'
        for unshare in (["unshare", "-m"], ["unshare", "--map-root-user", "-m"]):
            holder = subprocess.Popen(
                expirable([*unshare, "sh", "-c", mount]), stdout=subprocess.PIPE, text=True
            )
            assert holder.stdout is not None
            if holder.stdout.readline() == "mounted\n":
                break
            holder.wait()
        else:
            raise AssertionError("a small file system takes the right to mount a tmpfs")
        self._holder = holder
        user = ["-U", "--preserve-credentials"] if "--map-root-user" in unshare else []
        #: The start of a command line that sees the disk.
        self.command = ["nsenter", "-t", str(holder.pid), *user, "-m", "--"]
        assert shutil.which("nsenter")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    @property
    def inside(self) -> Path:
        """The path of the folder for other processes."""
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    def free(self) -> int:
        """Return the free bytes."""
        return shutil.disk_usage(self.inside).free

    def fill(self) -> None:
        """Write to the disk until it is full."""
        with (self.inside / "BALLAST").open("ab", buffering=0) as ballast:
            for size in (1 << 20, 4096):
                try:
                    while ballast.write(bytes(size)):
                        continue
                except OSError:
                    continue

    def make_room(self) -> None:
        """Delete what ``fill`` wrote."""
        (self.inside / "BALLAST").unlink()
        wait_until(lambda: self.free() > 0, 5, "there is room")
