"""A model of registers that drives the votes of the store through random schedules.

``docs/atomic.md`` names the rules. Voters are the code that peers use, on stores in memory.
Proposers, topology changes and tombstone GC are modelled. ``python -m tests.model --help`` explores
longer.
"""
