"""Recipes, preflight, the loop, checkpoints. Calling the package trains."""

from striate.core.rooms import callable_room

callable_room(__name__, "striate.train.session", "train")
