"""A dev cluster in its own folder, and the ``dstash`` command in that folder."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

DSTASH = str(Path(sys.executable).parent / "dstash")
COMMAND_TIMEOUT = 100.0


#: Settings of every ``dstash`` that a test runs; tests add temporary settings. The reserve is
#: small, because it is allocated: the default for hundreds of peers would fill a disk.
settings: dict[str, str] = {"DSTASH_DISK_RESERVE": "1048576"}


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without settings of the developer."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("DSTASH_")}
    kept |= settings
    return kept | {"COLUMNS": "80"} | more


class DevCluster:
    """Peers started by ``dstash dev up``; commands run in their folder and find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        *words: str,
        stdin: bytes = b"",
        environ: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``dstash`` until it ends."""
        return subprocess.run(
            [DSTASH, *words],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=clean_environment(**environ or {}),
            timeout=COMMAND_TIMEOUT,
        )

    def out(self, *words: str, stdin: bytes = b"") -> str:
        """Run ``dstash``, which must succeed, and return what it printed."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def refusal(self, *words: str, stdin: bytes = b"") -> tuple[int, str]:
        """Run ``dstash``, which must fail with one line; return the exit code and that line."""
        done = self.run(*words, stdin=stdin)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("dstash: ")
        return done.returncode, lines[0].removeprefix("dstash: ")

    def start(
        self,
        words: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """Start ``dstash`` without waiting for its end."""
        return subprocess.Popen(
            [DSTASH, *words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=self.folder,
            env=clean_environment(**environ),
        )


class InProcess(DevCluster):
    """The same with ``dstash`` inside this process: ten times as fast, but without real pipes."""

    def run(
        self,
        *words: str,
        stdin: bytes = b"",
        environ: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``dstash`` until it ends."""
        from dstash.cli.main import main

        given, out, err = (io.TextIOWrapper(io.BytesIO(data)) for data in (stdin, b"", b""))
        with (
            mock.patch.multiple(sys, argv=["dstash", *words], stdin=given, stdout=out, stderr=err),
            mock.patch.dict(os.environ, clean_environment(**environ or {}), clear=True),
            contextlib.chdir(self.folder),
        ):
            try:
                main()
            except SystemExit as end:
                code = int(str(end.code or 0))
        written = [_written(stream) for stream in (out, err)]
        return subprocess.CompletedProcess(words, code, *written)


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()
