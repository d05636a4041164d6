"""The operations of the model: what each does to a register, with request ids (rules D6 to D8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from dstash.store.record import HEAD_BYTES, is_tombstone
from dstash.store.register.header import Applied, Entry, Header, split
from dstash.version import Stamp

#: Entries that a register of the model keeps: few, so that they leave often.
_MAX_ENTRIES: Final = 3


class Operation(NamedTuple):
    """An operation of a client: ``a`` adds, ``w`` writes, ``d`` deletes, ``q`` reads."""

    kind: str
    number: Stamp
    began: int

    @property
    def name(self) -> str:
        """Its name in the chain of values."""
        return f"{self.kind}{self.number & 0xFFFF}"

    @property
    def caller(self) -> bytes:
        """The caller of the request: each operation of the model has its own."""
        return self.number.to_bytes(8, "big")


class Base(NamedTuple):
    """What an operation is applied to: the register, and the chain of operations that led to it."""

    record: bytes | None
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """The result of an operation. ``header`` is None if nothing has to be written."""

    outcome: str
    chain: tuple[str, ...]
    header: Header | None = None
    deleted: bool = False


def apply(
    operation: Operation, base: Base, horizon: Stamp, *, repeated: bool, broken: str
) -> Result:
    """Apply an operation.

    Args:
        operation: the operation.
        base: what it is applied to.
        horizon: the highest that the voters have reported.
        repeated: whether the request was sent before.
        broken: the rule that is broken.
    """
    is_live = base.record is not None and not is_tombstone(base.record)
    header = _header(base.record, 0 if broken == "new_register_forgets_nothing" else horizon)
    if operation.kind == "q":
        return Result("read", base.chain)
    entry = next((entry for entry in header.entries if entry.caller == operation.caller), None)
    if entry is not None and broken != "applies_twice":
        return Result("conflict" if entry.outcome else "applied", base.chain)
    if operation.number <= header.forgotten and broken != "applies_twice":
        return Result("forgotten", base.chain)
    if (operation.kind == "a" and is_live) or (operation.kind == "d" and not is_live):
        if not repeated or broken == "repeated_conflict_leaves_no_entry":
            return Result("conflict", base.chain)
        header = _with(header, Entry(operation.caller, operation.number, 0, Applied.CONFLICT))
        return Result("conflict", (*base.chain, f"!{operation.name}"), header, not is_live)
    header = _with(header, Entry(operation.caller, operation.number, 0))
    return Result("applied", (*base.chain, operation.name), header, operation.kind == "d")


def _header(record: bytes | None, horizon: Stamp) -> Header:
    if record is None:
        return Header(0, forgotten=horizon)
    return split(record[HEAD_BYTES:])[0]


def _with(header: Header, entry: Entry) -> Header:
    entries = sorted([*header.entries, entry], key=lambda kept: kept.number)
    gone, kept = entries[:-_MAX_ENTRIES], entries[-_MAX_ENTRIES:]
    forgotten = max([header.forgotten, *(entry.number for entry in gone)])
    return Header(header.changed, header.fence, forgotten, tuple(kept))
