"""The placements of one partition in the epochs of a change, as the model knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Epoch:
    """One epoch: the sides that vote, the replicas that are read, and the counted members."""

    sides: tuple[str, ...]
    readers: str
    counted: str

    @property
    def members(self) -> str:
        """All replicas of all sides."""
        return "".join(sorted(set("".join(self.sides))))

    @property
    def is_before_switch(self) -> bool:
        """Whether there are two sides, and the old one is read (rule T1)."""
        return len(self.sides) > 1 and self.readers == self.sides[0]

    def has_majorities(self, names: set[str], sides: tuple[str, ...]) -> bool:
        """Whether counted members among ``names`` are a majority of each of some sides."""
        return all(
            len([name for name in side if name in names and name in self.counted]) > len(side) // 2
            for side in sides
        )


@dataclass(frozen=True)
class Scenario:
    """The epochs of one change, the replicas that are streamed, and the replica that is wiped."""

    epochs: dict[int, Epoch]
    streamed: str = ""
    #: Whether the streamed replicas hold records already.
    stays: bool = False
    wiped: str = ""

    @property
    def last(self) -> int:
        """The last epoch."""
        return max(self.epochs)

    @property
    def names(self) -> str:
        """All replicas of all epochs."""
        return "".join(sorted({name for epoch in self.epochs.values() for name in epoch.members}))


def _change(old: str, new: str, streamed: str, *, stays: bool = False) -> Scenario:
    counted = "".join(sorted(set(old + new)))
    return Scenario(
        {
            1: Epoch((old,), old, counted),
            2: Epoch((old, new), old, counted),
            3: Epoch((old, new), new, counted),
            4: Epoch((new,), new, counted),
        },
        streamed,
        stays,
    )


SCENARIOS: Final = {
    "stable": Scenario({1: Epoch(("ABC",), "ABC", "ABC")}),
    "replace1": _change("ABC", "BCD", "D"),
    "replace2": _change("ABC", "CDE", "DE"),
    "shrink": _change("ABC", "BC", "BC", stays=True),
    "amnesia": Scenario(
        {
            1: Epoch(("ABC",), "ABC", "ABC"),
            2: Epoch(("ABC",), "ABC", "BC"),
            3: Epoch(("ABC",), "ABC", "ABC"),
        },
        "A",
        wiped="A",
    ),
}
