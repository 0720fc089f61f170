"""Which edges to remove: ACDC, EAP-ACDC, attributions and baselines.

Imports engines and basis.
"""
