"""Test protocols and scores. Calling the package evaluates a model."""

from striate.core.rooms import callable_room

callable_room(__name__, "striate.evaluate.evaluate", "evaluate")
