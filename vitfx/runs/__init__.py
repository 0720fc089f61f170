"""One run a command: from checked arguments to a folder of results.

Imports every wing but cli.
"""
