"""The connections of a router, their limits, and the memory that they use."""
