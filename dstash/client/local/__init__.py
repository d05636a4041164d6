"""Reads of a client from the stores of peers of its machine, without a request."""
