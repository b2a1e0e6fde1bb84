"""Pages (HTML)."""
