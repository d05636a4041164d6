"""Tests of ``dstash/peer/registers``."""
