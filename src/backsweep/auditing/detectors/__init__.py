"""Detectors of training sets, one a file."""
