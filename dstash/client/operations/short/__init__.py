"""Calls for one key in few steps; what is not plain continues as an operation."""
