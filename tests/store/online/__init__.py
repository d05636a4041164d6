"""Tests of the compaction of a store in use."""
