"""Looking inside a network."""
