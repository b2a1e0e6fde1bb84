"""Networks over texts, tables, sounds and conversations (those over images: `models/architectures.py`)."""
