"""Tests of dstash.client."""
