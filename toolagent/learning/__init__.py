"""Learning: returns and advantages, losses, the learner and the algorithm around it."""
