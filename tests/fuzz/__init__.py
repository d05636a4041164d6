"""Garbage for the codec, the core and real peers, for as long as wanted: ``make fuzz``."""
