"""Tests, in the folders of the package; shared helpers are in ``harness``."""
