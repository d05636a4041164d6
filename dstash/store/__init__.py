"""What stays: records, the LMDB store, digests, and the dictionary twin used by tests."""
