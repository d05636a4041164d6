"""Tests of ``dstash/store/register``."""
