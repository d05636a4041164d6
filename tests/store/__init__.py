"""Tests of dstash.store."""
