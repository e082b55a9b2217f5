"""Bytes held, prefill and decode by context length. `python -m benchmarks.generation`."""
