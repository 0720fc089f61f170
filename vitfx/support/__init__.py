"""What every other wing needs: consoles, errors, files, locks, processes, progress, timing, text.

Imports nothing of vitfx.
"""
