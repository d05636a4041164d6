"""Backups of a running cluster: saving, verifying, restoring."""
