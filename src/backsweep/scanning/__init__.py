"""Is a model backdoored: `scan`."""
