"""Which samples of a training set are poisoned: `audit`."""
