"""Test protocols and scores."""
