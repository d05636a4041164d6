"""Reads of a store by other processes of its machine, next to the peer that owns it."""
