"""Recipes, preflight, the loop, checkpoints."""
