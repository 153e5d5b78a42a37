"""The parts of `python -m toolagent.export`: graphs, model card, player, and the check of them."""
