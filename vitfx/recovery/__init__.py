"""Retraining of pruned models: distillation, adapters, held-out checks.

Imports pruning, training and the wings below them.
"""
