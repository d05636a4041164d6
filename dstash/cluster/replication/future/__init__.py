"""Records and floors of the future: what clocks that were wrong have left behind."""
