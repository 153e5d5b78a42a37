"""The curriculum: a pure rule over declared levels, and the RLlib callback that applies it."""
