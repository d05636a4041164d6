"""Benchmarks: dstash and its alternatives on one machine, in one run.

``make bench`` runs them; they are measurements, not tests. Each system is a ``Store``; the runner
takes turns between them, so that whatever else the machine does falls on all alike; only ratios
from one run mean anything.
"""
