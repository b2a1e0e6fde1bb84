"""TorchScript archives: objects read as data, code parsed as text and run by an interpreter of our own."""
