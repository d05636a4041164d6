"""Benchmarks: dstash and its alternatives on one machine, in one run.

``make bench`` runs them; they are measurements, not tests. Each system is a ``Store``. The runner
alternates between them, so that other load on the machine affects all equally. Only ratios from the
same run are meaningful.
"""
