"""Which inputs carry a trigger: `guard`."""
