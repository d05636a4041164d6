"""Storage: records, merging, digests, the LMDB store, and the dictionary twin for tests."""
