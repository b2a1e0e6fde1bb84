"""The classifier: its layers, training, washing."""
