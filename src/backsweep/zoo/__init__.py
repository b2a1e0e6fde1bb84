"""Attacked and clean networks with their truth."""
