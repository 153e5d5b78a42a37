"""The two GRUs that read a context, one in each direction."""

import numpy as np

from toolagent.export.player.gru import gru


def read_context(w, seen, shown):
    """The states behind each token, (B, L, 2D), and the two last ones, (B, 2D); padding does not
    change them.
    """
    x = w["context_embedding.weight"][seen].swapaxes(0, 1)  # (L, B, D)

    def run(name, places):
        states, hidden = np.zeros_like(x), np.zeros_like(x[0])
        for j in places:
            states[j] = hidden = np.where(shown[:, j], gru(w, name, x[j], hidden), hidden)
        return states

    forward = run("forward_gru.{}", range(len(x)))
    backward = run("backward_gru.{}", reversed(range(len(x))))
    both = np.concatenate([forward, backward], 2).swapaxes(0, 1)
    return both, np.concatenate([forward[-1], backward[0]], 1)
