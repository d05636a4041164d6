"""Tests mirror the package; what several of them share is in ``harness``."""
