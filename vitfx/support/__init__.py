"""What every other wing leans on: errors, files, progress, processes, timing, text.

Imports nothing of vitfx.
"""
