"""Rollouts: whole episodes in columns, from the machine and the network to the learner."""
