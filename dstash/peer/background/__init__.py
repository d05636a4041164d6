"""The background work of a peer: its tasks, and the messages to other peers that they need."""
