"""A detector, an attack and a repair for Backsweep, found by their entry points."""
