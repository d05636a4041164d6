"""The manifest of a backup: a list of its pieces. It is written last, when all are complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self, TypeVar

from dstash.errors import DStashError
from dstash.limits import PARTITIONS

#: The format that this version writes, and the only format that it reads.
FORMAT: Final = 1

#: Partitions of one piece: an interrupted save continues with the next piece.
PARTITIONS_PER_PIECE: Final = 16
PIECES: Final = PARTITIONS // PARTITIONS_PER_PIECE

_SEAL: Final = "seal"

_T = TypeVar("_T")


class BackupError(DStashError):
    """A backup cannot be used. The text names the file."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a backup: all records of the partitions ``first`` to ``last``.

    ``moving`` is the number of partitions that changed during each copy: they contain every write
    that was acknowledged before the copy began, and some of the later ones. The other partitions
    are copies of one moment. ``began`` and ``ended`` are ISO 8601 times.
    """

    file: str
    first: int
    last: int
    records: int
    tombstones: int
    moving: int
    bytes: int
    began: str
    ended: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished backup. ``partitions`` is P, which decides the piece of a key."""

    cluster: str
    cluster_id: str
    epoch: int
    began: str
    ended: str
    software: str
    pieces: tuple[Piece, ...]
    partitions: int = PARTITIONS

    @property
    def records(self) -> int:
        """The number of records, including tombstones."""
        return sum(piece.records for piece in self.pieces)

    @property
    def tombstones(self) -> int:
        """The number of records that say that a key was deleted."""
        return sum(piece.tombstones for piece in self.pieces)

    @property
    def moving(self) -> int:
        """The number of partitions that changed each time they were copied."""
        return sum(piece.moving for piece in self.pieces)

    @property
    def weight(self) -> int:
        """What the pieces weigh, in bytes."""
        return sum(piece.bytes for piece in self.pieces)

    def encode(self) -> bytes:
        """Return the JSON form, with a checksum over itself."""
        plain = {"format": FORMAT} | asdict(self)
        plain["pieces"] = [asdict(piece) for piece in self.pieces]
        return json.dumps(plain | {_SEAL: _seal(plain)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Rebuild a manifest.

        Raises:
            BackupError: it has another format or P, or is corrupt.
        """
        raw = parse_object(data, "it is corrupt, or not a manifest")
        if raw.get("format") != FORMAT:
            raise BackupError(f"its format is {raw.get('format')!r}; this version reads {FORMAT}")
        if raw.pop(_SEAL, None) != _seal(raw):
            raise BackupError("it is corrupt: its checksum does not match its content")
        if raw.get("partitions") != PARTITIONS:
            raise BackupError(
                f"it is from a cluster with {raw.get('partitions')!r} partitions; "
                f"this version has {PARTITIONS}"
            )
        pieces = tuple(
            take(Piece, piece, "it is corrupt: a piece lacks a field")
            for piece in raw.get("pieces", ())
        )
        return take(cls, raw | {"pieces": pieces}, "it is corrupt: a field is missing")


def parse_object(data: bytes, complaint: str) -> dict[str, Any]:
    """Return a JSON object; raise ``BackupError`` with the complaint if it is invalid."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise BackupError(complaint)
    return raw


def take(make: Callable[..., _T], raw: dict[str, Any], complaint: str) -> _T:
    """Build a dataclass from an object of a file; ``BackupError`` if a field is missing."""
    names = [field.name for field in fields(make)]  # type: ignore[arg-type]  # given dataclasses only
    try:
        return make(**{name: raw[name] for name in names})
    except (KeyError, TypeError):
        raise BackupError(complaint) from None


def _seal(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
