"""Reading a model that a stranger made, one file a format, and writing it back."""
