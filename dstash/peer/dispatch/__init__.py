"""Handlers of the messages that the core of a peer dispatches, and the encoding of its replies."""
