"""The peer: a core without I/O, its server loop, and what surrounds it."""
