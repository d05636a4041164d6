"""The save of a running cluster: several pieces at a time, continuing an interrupted save."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from dstash.about import __version__
from dstash.backup.copy import Copier, Source
from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import Header, PieceWriter, file_of
from dstash.backup.workers import Workers
from dstash.cluster.topology.topology import Topology
from dstash.errors import DStashError
from dstash.wire.shapes import Message

_RETRY_PAUSE_S: Final = 0.3


class Save:
    """One run of a save.

    Args:
        folder: the folder of the backup.
        topology: the topology of the cluster.
        source: the cluster.
        parallel: number of pieces that are copied at the same time.
        patience: seconds for which a piece is retried when peers fail.
        on_progress: called at short intervals.
    """

    def __init__(
        self,
        folder: Folder,
        topology: Topology,
        source: Source,
        parallel: int,
        patience: float,
        on_progress: Callable[[Save], None],
    ) -> None:
        self._folder = folder
        self._topology = topology
        self._source = source
        self._patience = patience
        self._workers = Workers(parallel, lambda: on_progress(self))
        #: Corrupt pieces of an earlier save, which are saved again.
        self.corrupt: list[str] = []
        self.kept: list[Piece] = []
        self.made: list[Piece] = []

    @property
    def done(self) -> int:
        """The number of finished pieces."""
        return len(self.kept) + len(self.made)

    @property
    def records(self) -> int:
        """The number of records that this run has saved."""
        return sum(piece.records for piece in self.made)

    def run(self) -> Manifest:
        """Save the missing pieces; return the manifest, which is on disk then.

        Raises:
            UsageError, StoreInUse, BackupError: the folder cannot be used.
            Unavailable, TimedOut, ...: peers did not answer. Finished pieces stay.
        """
        with self._folder.taken():
            missing = [number for number in range(PIECES) if not self._keep(number)]
            self._workers.run(self._make, missing)
            pieces = sorted([*self.kept, *self.made], key=lambda piece: piece.first)
            manifest = Manifest(
                self._topology.cluster,
                self._topology.cluster_id,
                self._topology.epoch,
                min(piece.began for piece in pieces),
                _now(),
                __version__,
                tuple(pieces),
            )
            self._folder.publish(manifest)
        return manifest

    def _keep(self, number: int) -> bool:
        """Whether an earlier save has finished this piece."""
        try:
            found = self._folder.finished(number)
        except BackupError as error:
            self.corrupt.append(str(error))
            return False
        if found is None:
            return False
        cluster_id, piece = found
        if cluster_id != self._topology.cluster_id:
            raise BackupError(
                f"{self._folder.path / piece.file} is from another cluster ({cluster_id}); "
                "specify another folder"
            )
        self.kept.append(piece)
        return True

    def _make(self, number: int) -> None:
        header = Header(self._topology.cluster_id, number)
        with self._folder.writing(file_of(number)) as target:
            writer = PieceWriter(target, header, _now())
            moving = self._copied(writer)
            piece = writer.finish(moving, _now())
        self.made.append(piece)

    def _copied(self, writer: PieceWriter) -> int:
        """Copy the partitions of a piece; start again when a peer fails."""
        begin = writer.mark()
        deadline = time.monotonic() + self._patience
        while True:
            self._workers.check()
            try:
                return Copier(_Stoppable(self._source, self._workers), writer).copy(
                    writer.header.partitions
                )
            except DStashError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
            writer.rewind(begin)
            self._workers.pause(_RETRY_PAUSE_S)


class _Stoppable:
    """A source that raises ``Stopped`` once the threads must end."""

    def __init__(self, source: Source, workers: Workers) -> None:
        self._source = source
        self._workers = workers
        self.routes = source.routes

    def ask(self, peer: str, question: Message, epoch: int) -> Message:
        """Return a peer's answer."""
        self._workers.check()
        return self._source.ask(peer, question, epoch)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
