"""Arguments and exit codes of the commands.

Imports runs and the wings below it.
"""
