"""From a module to a canonical graph, and the proof that a rewritten graph computes what it should.

Imports support and images.
"""
