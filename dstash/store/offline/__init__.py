"""Work on the store of a stopped peer, or on a copy of one."""
