"""Looking inside a network. Calling the package draws a picture."""

from striate.core.rooms import callable_room

callable_room(__name__, "striate.visualize.method", "visualize")
