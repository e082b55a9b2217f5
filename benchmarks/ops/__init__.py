"""The operators against their peers. `python -m benchmarks.ops`."""
