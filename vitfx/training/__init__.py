"""Training from nothing: recipes, loader, loop, state.

Imports models, images and support.
"""
