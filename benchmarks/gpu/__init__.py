"""The steps of `python -m benchmarks.cuda`, one file each, and what runs, times and records them."""
