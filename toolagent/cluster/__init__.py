"""Starting or joining a Ray cluster, its token, and the code that travels to it."""
