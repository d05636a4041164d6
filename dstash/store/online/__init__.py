"""Compaction of a store while its peer serves."""
