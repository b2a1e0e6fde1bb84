"""Layers of Keras over torch operators."""
