"""The model: a plain torch network, and the RLlib module around it."""
