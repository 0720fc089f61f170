"""Finding circuits: runs of a method over an engine, replay, stability, memory.

Imports circuits and the wings below it.
"""
