"""Engines: ways to run a net in evaluation that give its answers, and the choice of the fastest."""
