"""Keras models: their configuration and weights read as data, run over torch operators."""
