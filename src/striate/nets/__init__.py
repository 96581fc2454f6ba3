"""Architectures as sequences of named stages."""
