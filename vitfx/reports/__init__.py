"""What a person looks at: text, tables, pages, charts.

Imports recovery, pruning and the wings below them.
"""
