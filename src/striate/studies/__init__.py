"""Whole jobs, put together from the rooms below."""
