"""Shadow networks and the meta-classifier (Meta Neural Analysis)."""
