"""Data sets and preprocessing: from folders, archives and arrays to batches of pixels.

Imports support.
"""
