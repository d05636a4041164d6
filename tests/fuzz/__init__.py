"""Fuzzing of the codec, the core and real peers, for any time: ``make fuzz``."""
