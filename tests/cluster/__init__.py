"""Tests of ``dstash.cluster``."""
