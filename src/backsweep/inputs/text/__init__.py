"""Text: sentences as the ids of their tokens."""
