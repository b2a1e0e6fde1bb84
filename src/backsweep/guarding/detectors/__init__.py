"""Detectors of single inputs, one a file."""
