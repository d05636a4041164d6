"""Registers: records on which replicas agree by ballots (see ``docs/atomic.md``)."""
