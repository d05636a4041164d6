"""Tests of security: hostile clients, keys, and roles."""
