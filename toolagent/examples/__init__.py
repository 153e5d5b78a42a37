"""Examples to copy and change; each says in its first lines how it is run."""
