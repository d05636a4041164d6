"""A pseudo-terminal that a test types into."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from pathlib import Path
from typing import Final

from tests.harness.devcluster import DSTASH, DevCluster, clean_environment

PATIENCE: Final = 30.0


class Terminal:
    """A pseudo-terminal of 120 columns that runs ``dstash``.

    Args:
        cluster: the command runs in its folder.
        home: the home directory of the user.
        words: the arguments of ``dstash``.
        lines: height of the screen.
    """

    def __init__(self, cluster: DevCluster, home: Path, *words: str, lines: int = 24) -> None:
        self.seen = ""
        self._pid, self._screen = pty.fork()
        if not self._pid:
            os.chdir(cluster.folder)
            size = {"LINES": str(lines), "COLUMNS": "120"}
            environment = clean_environment(HOME=str(home), TERM="xterm", **size)
            os.execve(DSTASH, [DSTASH, *words], environment)  # noqa: S606

    def type(self, keys: str) -> None:
        """Press keys."""
        self.seen = ""
        os.write(self._screen, keys.encode())

    def await_text(self, text: str) -> None:
        """Wait until the text has appeared since the last key."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            assert self._read(), self.seen
        self.seen = self.seen.partition(text)[2]

    def await_prompt(self) -> None:
        """Wait for the next prompt, on a new line below the input."""
        self.await_text("\x1b[6n")
        self.await_text("dstash>")

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        while self._read():
            pass
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self._pid, number)

    def close(self) -> None:
        """Stop the process and close the terminal."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._screen)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], PATIENCE)
        try:
            raw = os.read(self._screen, 1 << 16) if ready else b""
        except OSError:  # the terminal reports that no process has it open
            return False
        if b"\x1b[6n" in raw:  # each prompt starts with a request for the cursor position
            os.write(self._screen, b"\x1b[1;1R")
        self.seen += re.sub(r"\x1b\[(?!6n)[?0-9;]*[a-zA-Z]", "", raw.decode(errors="replace"))
        return bool(raw)
