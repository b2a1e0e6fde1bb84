"""ONNX models: read as data, run node by node over torch, and written back."""
