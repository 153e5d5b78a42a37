"""The parts of `python -m toolagent.benchmark`."""
