"""What removing an edge costs, answered exactly, without running the whole model again.

Imports basis.
"""
