"""A training run from start to end: Ray, the folder it writes, what a person sees, the loop."""
