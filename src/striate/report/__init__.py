"""HTML and figures."""
