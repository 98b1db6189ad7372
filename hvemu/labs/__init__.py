"""Rebuilding guests, benchmarks: things that are run, not imported."""
