"""Measured claims, one file each: `python -m benchmarks [NAME …]`.

Each prints lines `RATIO name value target`, and beside it what was divided by what.
"""
