"""The cluster: topology, membership, replication and repair."""
