"""Which layers keep their whole context. `python -m benchmarks.layers`."""
