"""Small faults, planted one by one in a copy of the tree, and whether the tests around them notice.

    python -m tests.planted_faults --out RESULTS

The faults are data: a TOML file for each part of the tree. Each takes seconds of one core. A run that is broken off
goes on where it stopped, and so does one after changes: only what is new or whose tests or file changed runs again.
"""
