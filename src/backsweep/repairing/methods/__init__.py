"""Repairs, one a file."""
