"""What removing an edge costs, answered exactly and without running the whole model again.

Imports basis.
"""
