"""The digests of the partitions of one store, and how they are kept up to date."""
