"""Pictures as arrays: decode, warp, colour, draw."""
