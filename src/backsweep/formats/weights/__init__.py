"""Weights by their names: finding them in what a file holds, fitting them, and giving them new values."""
