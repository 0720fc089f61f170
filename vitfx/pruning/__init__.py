"""From a circuit or a goal to a plan: price, search, compensation.

Imports discovery, deploy and the wings below them.
"""
