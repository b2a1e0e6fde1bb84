"""Many models: where they are found, and the verdicts that are kept."""
