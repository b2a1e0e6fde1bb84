"""Taking a backdoor out of a network: `repair`."""
