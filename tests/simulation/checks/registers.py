"""Checks of registers.

- I7: the history of each register is linearizable. Two judges must agree: one searches for an order
  of the calls, the other one replays the order of their versions.
- I8: each request is applied at most once, and an acked one exactly once (by I7: all values differ,
  and counters count).
- I9: versions grow along real time.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.harness.linearizability import is_linearizable
from tests.harness.replay import contradiction
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.registers import INDEX


@check()
def registers(run: Run) -> Iterator[Violation]:
    """Check the calls on each register (I7, I8)."""
    for key, calls in sorted(run.history.registers.items()):
        is_explained, why = is_linearizable(calls), contradiction(calls)
        if not is_explained or why:
            lines = [
                f"{call.began / 1e6:.6f}..{call.ended / 1e6:.6f} {call.kind} {call.argument!r} -> "
                f"{'?' if call.is_unknown else repr(call.answer)} {call.version or ''}"
                for call in calls
            ]
            said = "no order explains its history" if not is_explained else "an order exists"
            text = f"{said}; {why or 'its versions do'}:\n  " + "\n  ".join(lines)
            yield Violation("I7", (INDEX, key), text)


@check()
def register_versions(run: Run) -> Iterator[Violation]:
    """Check that versions grow along real time (I9)."""
    for key, steps in sorted(run.history.steps.items()):
        for step in steps:
            earlier = [other.version for other in steps if other.ended < step.began]
            if earlier and max(earlier) >= step.version:
                text = f"version {step.version} was answered after {max(earlier)}"
                yield Violation("I9", (INDEX, key), text)
