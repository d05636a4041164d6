"""Tests of dstash.wire."""
