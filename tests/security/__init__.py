"""Hostile clients against real peers, and keys."""
