"""Triggers recovered from a model: the inversion loop, budgets and families."""
