"""A report for people (console, HTML) and for other programs (SARIF)."""
