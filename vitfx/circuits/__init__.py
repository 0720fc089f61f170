"""What a circuit is, how it runs, and what it looks like.

Imports models, graph, images and support.
"""
