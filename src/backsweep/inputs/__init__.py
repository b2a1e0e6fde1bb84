"""Samples, triggers, and what differs between kinds of input."""
