"""Training an agent: from the command to the results."""
