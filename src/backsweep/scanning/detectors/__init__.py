"""Detectors of models, one a file."""
