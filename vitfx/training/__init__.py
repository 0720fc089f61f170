"""Training from scratch: recipes, loader, loop, state.

Imports models, images and support.
"""
