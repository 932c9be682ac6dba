"""Benchmarks beside the peers, from the same topic in the same run. See `replay` and `growth`."""
