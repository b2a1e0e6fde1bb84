"""Formats for other programs: SARIF, CycloneDX."""
