"""Who holds what: placement, topology, membership."""
