"""Searches over the configuration with Ray Tune: what `python -m toolagent.tune` is made of."""
