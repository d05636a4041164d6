"""Shared helpers of tests: waiting, ports, processes, a real Consul."""
