"""The whole cluster in one process: real cores, and a world around them made from one seed."""
