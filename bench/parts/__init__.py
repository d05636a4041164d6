"""The parts of a benchmark run, one module each."""
