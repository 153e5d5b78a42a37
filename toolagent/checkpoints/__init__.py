"""What lasts: run folders, checkpoints, policies, and their copy on other storage."""
