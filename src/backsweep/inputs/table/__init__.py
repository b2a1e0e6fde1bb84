"""Tables: rows of numbers and categories, with a schema."""
