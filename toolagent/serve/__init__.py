"""The playground: an agent behind an HTTP API, and one page to watch it."""
