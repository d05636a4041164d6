"""Tests of dstash.peer."""
