"""The client library: a core without I/O and the shells around it."""
