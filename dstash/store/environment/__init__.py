"""An LMDB environment: how it is opened, and its transactions."""
