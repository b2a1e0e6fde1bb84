"""What the default scan measures, how much of it, and what that says."""
