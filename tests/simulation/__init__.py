"""Simulation of a cluster in one process: real cores in a world that one seed determines."""
