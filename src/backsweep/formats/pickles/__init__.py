"""Pickles as data: a machine that makes nothing run, and the forms that PyTorch writes them in."""
