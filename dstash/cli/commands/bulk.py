"""The commands ``dstash import`` and ``dstash export``: whole files, in bounded memory."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from dstash.cli import invocation
from dstash.cli.arguments import STDIN, IndexName, IntKeys, Ttl
from dstash.cli.batches import BadLine, Importer, OnError
from dstash.cli.console import output
from dstash.cli.console.progress import progress_bar
from dstash.cli.formats import Columns, Format, format_of, read_rows, writer
from dstash.cli.invocation import Interrupted, PartlyFailed
from dstash.errors import DStashError, UsageError
from dstash.limits import check_index, check_ttl
from dstash.wire.keys import Key

if TYPE_CHECKING:
    from dstash.client.blocking import Client

#: The default timeout of calls is too short for a large batch.
_BATCH_TIMEOUT_S: Final = 60.0

FileName = Annotated[str, typer.Argument(metavar="FILE|-", help="A file; - is stdin or stdout.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Default: by the suffix of the file.")
]
KeyColumn = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="COLUMN", help="CSV, parquet: column of the key. Default: the first."
    ),
]
ValueColumn = Annotated[
    str | None,
    typer.Option(
        "--value",
        metavar="COLUMN",
        help="CSV, parquet: column of the value. Default: all other columns.",
    ),
]


def import_(
    ctx: typer.Context,
    index: IndexName,
    file: FileName,
    form: FormatOption = None,
    key: KeyColumn = None,
    value: ValueColumn = None,
    as_int: IntKeys = False,
    ttl: Ttl = None,
    on_error: Annotated[
        OnError, typer.Option(help="Reaction to a record that cannot be stored.")
    ] = OnError.STOP,
) -> None:
    """Store the records of a file; a key that exists gets the new value.

    jsonl: one {"key": ..., "value": ..., "ttl": seconds} per line; ttl is optional.
    csv: with a header line. msgpack: maps like those of jsonl. parquet: needs dstash[parquet].
    With --on-error skip, bad records are skipped and the exit code is 9.
    """
    check_index(index)
    check_ttl(ttl)
    kind = format_of(file, form)
    noun = "record" if kind in (Format.MSGPACK, Format.PARQUET) else "line"
    run = invocation.of(ctx)
    began = time.monotonic()
    name = "stdin" if file == STDIN else file
    with _source(file) as source, run.client() as client:
        importer = Importer(client, index, ttl, on_error, noun, run.long_timeout(_BATCH_TIMEOUT_S))
        rows = read_rows(kind, source, Columns(key, value, as_int))
        with (
            _progress_in_errors(importer, name),
            progress_bar(
                f"import {index}", _size(source, kind), _bytes_done(source, importer)
            ) as bar,
        ):
            importer.run(rows, bar)
    seconds = time.monotonic() - began
    if run.as_json:
        output.json_line({"index": index} | _counts(importer) | {"seconds": round(seconds, 3)})
    output.message(f"imported {_rate(importer.stored, seconds)} into index '{index}'")
    _expect_all(importer, name)


def export(
    ctx: typer.Context,
    index: IndexName,
    file: FileName,
    prefix: Annotated[str, typer.Option(help="Only keys with this prefix.")] = "",
    form: FormatOption = None,
    key: KeyColumn = None,
    value: ValueColumn = None,
    with_ttl: Annotated[
        bool,
        typer.Option("--with-ttl", help="Also export the time to live. Slow: one request per key."),
    ] = False,
) -> None:
    """Write the records of an index to a file that import can read.

    The file appears under its name only when it is complete. It has every record that a look-up at
    the level of --read would find. CSV turns every value into text; parquet has a column for each
    name if all values are maps with the same names.
    """
    check_index(index)
    kind = format_of(file, form)
    run = invocation.of(ctx)
    began = time.monotonic()
    with run.client() as client, _target(file) as target:
        # Only for the progress bar, so the count of one replica is accurate enough.
        total = client.count(index, prefix, read="one") if sys.stderr.isatty() else None
        out = writer(kind, target, Columns(key, value))
        number = 0
        with progress_bar(f"export {index}", total) as progress:
            for record_key, item, left in _records(client, index, prefix, with_ttl):
                out.write(record_key, item, left)
                number += 1
                progress(number)
        out.finish()
    seconds = time.monotonic() - began
    if run.as_json and file != STDIN:  # otherwise stdout has the records
        output.json_line({"index": index, "exported": number, "seconds": round(seconds, 3)})
    output.message(f"exported {_rate(number, seconds)} from index '{index}'")


def _records(
    client: Client, index: str, prefix: str, with_ttl: bool
) -> Iterator[tuple[Key, Any, float | None]]:
    for key, value in client.items(index, prefix):
        try:
            yield key, value, client.ttl(index, key) if with_ttl else None
        except KeyError:
            continue  # it expired after the scan returned it


@contextmanager
def _source(file: str) -> Iterator[BinaryIO]:
    if file == STDIN:
        yield _Counted(sys.stdin.buffer)  # type: ignore[misc]  # has all methods that are used
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    with opened:
        yield opened


class _Counted:
    """stdin with a position, which a pipe does not have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        return data

    def readline(self, size: int) -> bytes:
        data = self._stream.readline(size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position


@contextmanager
def _target(file: str) -> Iterator[BinaryIO]:
    if file == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    try:
        partial = tempfile.NamedTemporaryFile(  # noqa: SIM115  # closed below
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        )
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    try:
        with partial:
            yield partial  # type: ignore[misc]  # the wrapper writes like a file
        _publish(Path(partial.name), path)
    except BaseException:
        Path(partial.name).unlink(missing_ok=True)
        raise


def _publish(partial: Path, path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)  # a temporary file is private; the export gets the usual mode
    partial.replace(path)


def _bytes_done(source: BinaryIO, importer: Importer) -> Callable[[], int]:
    # More has been read than stored.
    return lambda: int(source.tell() * importer.settled())


def _size(source: BinaryIO, kind: Format) -> int | None:
    if isinstance(source, _Counted) or kind is Format.PARQUET:  # parquet is not read in order
        return None
    size = os.fstat(source.fileno()).st_size
    return size or None


@contextmanager
def _progress_in_errors(importer: Importer, file: str) -> Iterator[None]:
    """Add to every error of an import how many records have been stored."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_so_far(importer)}") from None
    except PartlyFailed as error:
        raise PartlyFailed(f"{file}: {error}; {_so_far(importer)}") from None
    except BadLine as error:
        raise BadLine(f"{file}, {error}; {_so_far(importer)}") from None
    except UsageError as error:
        raise BadLine(f"{file}, {error}; {_so_far(importer)}") from None
    except DStashError as error:
        output.message(f"{file}: {_so_far(importer)}")
        raise error from None


def _so_far(importer: Importer) -> str:
    doubt = f", and possibly some of the next {importer.in_doubt:,}" if importer.in_doubt else ""
    skipped = f", skipped {importer.skipped}" if importer.skipped.count else ""
    return f"stored {_counted(importer.stored)}{doubt}{skipped}"


def _counts(importer: Importer) -> dict[str, int]:
    skipped, failed = importer.skipped.count, importer.failed.count
    return {"stored": importer.stored, "skipped": skipped, "failed": failed}


def _expect_all(importer: Importer, file: str) -> None:
    parts = (("skipped", importer.skipped), ("not stored", importer.failed))
    failures = [f"{verb} {lines}" for verb, lines in parts if lines.count]
    if failures:
        raise PartlyFailed(f"{file}: {'; '.join(failures)}")


def _rate(number: int, seconds: float) -> str:
    return f"{_counted(number)} in {seconds:.1f} s ({number / max(seconds, 1e-9):,.0f}/s)"


def _counted(number: int) -> str:
    return f"{number:,} {'record' if number == 1 else 'records'}"
