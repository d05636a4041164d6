"""``dstash backup``: copies of a whole running cluster, and back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest
from dstash.backup.restore_rules import Fate, as_of_backup, into_other, into_same
from dstash.backup.verify import Findings, verify
from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.console.progress import progress_bar
from dstash.cli.invocation import Interrupted, Invocation, PartlyFailed
from dstash.cli.units import size
from dstash.errors import UsageError
from dstash.limits import check_index
from dstash.types import Level

if TYPE_CHECKING:
    from collections import Counter

    from dstash.backup.restore import Restore
    from dstash.backup.source import LiveCluster

app = typer.Typer(help="Save a running cluster, and bring it back.", no_args_is_help=True)

#: Seconds: for one call, and for how long a piece is tried again when peers fail.
_CALL: Final = 20.0
_PATIENCE: Final = 60.0

DirName = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the backup.")]
Parallel = Annotated[
    int, typer.Option(metavar="N", min=1, max=64, help="Pieces that are at work at once.")
]


@app.callback()
def _group() -> None:
    """Save a running cluster, and bring it back."""


@app.command()
def save(ctx: typer.Context, directory: DirName, parallel: Parallel = 4) -> None:
    """Copy all records of the running cluster into a folder.

    All that was acknowledged before is in it. Interrupted, it goes on where it was when it is run
    again with the same folder. With CURVE it needs a key with role admin.
    """
    from dstash.backup.save import Save  # with the client: heavy

    run = invocation.of(ctx)
    began = time.monotonic()
    with _cluster(run) as cluster, progress_bar("backup save", PIECES, lambda: job.done) as bar:
        patience = run.patience(_PATIENCE) or run.settings().timeout
        job = Save(
            Folder(directory),
            cluster.topology(),
            cluster,
            parallel,
            patience,
            lambda job: bar(job.records),
        )
        try:
            manifest = job.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {job.done} of {PIECES} pieces are saved; "
                "the same command goes on from there"
            ) from None
    for text in job.corrupt:
        output.message(f"{text}; it was saved anew")
    if run.as_json:
        output.json_line(_facts(directory, manifest) | {"pieces_kept": len(job.kept)})
    output.message(_saved(directory, manifest, len(job.kept), time.monotonic() - began))


@app.command("verify")
def verify_(ctx: typer.Context, directory: DirName) -> None:
    """Read a backup from end to end and check it; exit code 1 and a line for all that is wrong."""
    run = invocation.of(ctx)
    found = _verified(Folder(directory))
    if run.as_json:
        facts = {} if found.manifest is None else _facts(directory, found.manifest)
        indexes = {row[0]: dict(zip(_COLUMNS[1:], row[1:], strict=True)) for row in _rows(found)}
        ok = not found.problems
        output.json_line({"ok": ok, "problems": found.problems} | facts | {"indexes": indexes})
    elif not found.problems:
        rows = [
            (name, f"{n:,}", f"{gone:,}", size(weight)) for name, n, gone, weight in _rows(found)
        ]
        output.table(_COLUMNS, rows)
    _expect_sound(directory, found)
    if found.manifest is not None:
        output.message(f"{directory} is sound: {_described(found.manifest)}")


@app.command()
def restore(
    ctx: typer.Context,
    directory: DirName,
    index: Annotated[
        list[str] | None,
        typer.Option("--index", metavar="NAME", help="Only this index; may be given again."),
    ] = None,
    as_of: Annotated[
        bool,
        typer.Option(
            "--as-of-backup",
            help="Overwrite what is newer, and bring back what was deleted since.",
        ),
    ] = False,
    parallel: Parallel = 4,
) -> None:
    """Write the records of a backup into the running cluster, of whatever size.

    What is newer there stays, and what was deleted there since stays deleted. The backup is
    verified first; nothing is written if anything is wrong with it. It may be run again.
    """
    from dstash.backup.restore import Restore

    run = invocation.of(ctx)
    began = time.monotonic()
    wanted = index or []
    for name in wanted:
        check_index(name)
    manifest, expected = _usable(directory, wanted)
    with _cluster(run) as cluster, progress_bar("backup restore", expected) as bar:
        is_same = cluster.topology().cluster_id == manifest.cluster_id
        rule = as_of_backup if as_of else into_same if is_same else into_other
        folder = Folder(directory)

        def tell(job: Restore) -> None:
            bar(job.fates.total())

        fates = _finish(Restore(folder, manifest, cluster, rule, wanted, parallel, tell))
    if run.as_json:
        seconds = round(time.monotonic() - began, 3)
        output.json_line({fate.value: fates[fate] for fate in Fate} | {"seconds": seconds})
    said = f"restored {directory} in {time.monotonic() - began:.1f} s: {_told(fates)}"
    if fates[Fate.CORRUPT]:
        raise PartlyFailed(said)
    output.message(said)


def _finish(job: Restore) -> Counter[Fate]:
    try:
        return job.run()
    except KeyboardInterrupt:
        so_far = _told(job.fates)
        raise Interrupted(f"interrupted; {so_far}; the same command may be run again") from None


@contextmanager
def _cluster(run: Invocation) -> Iterator[LiveCluster]:
    from dstash.backup.source import LiveCluster

    settings = run.settings()
    with run.client() as client:
        yield LiveCluster(
            client, Level.parse(settings.write), run.patience(_CALL) or settings.timeout
        )


def _usable(directory: Path, wanted: Sequence[str]) -> tuple[Manifest, int]:
    """Return the manifest of a sound backup, and how many records of those indexes it holds."""
    found = _verified(Folder(directory))
    manifest = _expect_sound(directory, found)
    held = found.indexes()
    unknown = [name for name in wanted if name not in held]
    if unknown:
        there = ", ".join(held) or "none"
        raise UsageError(f"{directory} has no index {unknown[0]!r}; there are: {there}")
    return manifest, sum(held[name].records + held[name].tombstones for name in wanted or held)


def _verified(folder: Folder) -> Findings:
    total = None
    with suppress(BackupError):  # it is about to be said
        total = folder.manifest().records
    with progress_bar("backup verify", total) as bar:
        try:
            return verify(folder, lambda found: bar(found.read))
        except KeyboardInterrupt:
            raise Interrupted("interrupted; nothing was changed") from None


def _expect_sound(directory: Path, found: Findings) -> Manifest:
    *others, last = found.problems or [""]
    for text in others:
        output.message(text)
    if found.problems or found.manifest is None:
        raise BackupError(last)
    return found.manifest


_COLUMNS: Final = ("index", "records", "deleted", "bytes")


def _rows(found: Findings) -> list[tuple[str, int, int, int]]:
    return [(name, one.records, one.tombstones, one.bytes) for name, one in found.indexes().items()]


def _facts(directory: Path, manifest: Manifest) -> dict[str, Any]:
    names = ("cluster", "cluster_id", "epoch", "began", "ended")
    totals = ("records", "tombstones", "moving")
    facts = {name: getattr(manifest, name) for name in (*names, *totals)}
    return {"directory": str(directory)} | facts | {"bytes": manifest.weight}


def _saved(directory: Path, manifest: Manifest, kept: int, seconds: float) -> str:
    earlier = f", {kept} of {PIECES} pieces by an earlier save" if kept else ""
    moving = f"; {manifest.moving} partitions never stood still" if manifest.moving else ""
    return f"saved {_described(manifest)} into {directory} in {seconds:.1f} s{earlier}{moving}"


def _described(manifest: Manifest) -> str:
    live = manifest.records - manifest.tombstones
    gone = f" and {manifest.tombstones:,} deletions" if manifest.tombstones else ""
    return (
        f"{live:,} records{gone} of cluster '{manifest.cluster}' ({size(manifest.weight)}, "
        f"{manifest.began[:19]}Z)"
    )


_WORDS: Final = {
    Fate.STORED: "stored",
    Fate.DELETED: "deleted",
    Fate.UNCHANGED: "there already",
    Fate.NEWER_KEPT: "newer kept",
    Fate.DELETED_KEPT: "deleted since and kept so",
    Fate.EXPIRED: "expired meanwhile",
    Fate.CORRUPT: "left damaged (--as-of-backup writes them anew)",
}


def _told(fates: dict[Fate, int]) -> str:
    """Return the counts in words; what is 0 is left out."""
    parts = [f"{fates[fate]:,} {words}" for fate, words in _WORDS.items() if fates.get(fate)]
    return ", ".join(parts) or "nothing to restore"
