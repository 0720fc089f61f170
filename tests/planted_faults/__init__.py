"""Small faults, planted one by one in a copy of the tree, and whether the tests around them notice.

    python -m tests.planted_faults --out RESULTS

The faults are data: a TOML file for each part of the tree. Some 20 minutes a hundred on one core; a run that is broken
off goes on where it stopped, and so does one after changes: only what is new or whose tests or file changed runs again.
"""
