"""Tests of ``dstash/peer/background``."""
