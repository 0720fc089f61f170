"""Real files with something wrong in them, for every loader: each is read as it was written or refused in a sentence.

`python -m tests.fuzz --seconds 60` tries all loaders for a minute each, until it is told to end; it is run by hand.
"""
