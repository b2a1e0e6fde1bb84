"""What was found, as data."""
