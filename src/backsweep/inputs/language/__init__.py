"""Language: prompts as the ids of their tokens, for models whose answer is the next token."""
