"""The cell that both networks are made of."""

import numpy as np


def gru(w, name, x, hidden, more=0):
    """One step of the GRU whose weights are named "gru.{}": input (B, D), hidden (B, D)."""
    inputs = x @ w[name.format("weight_ih")].T + w[name.format("bias_ih")] + more
    recurrent = hidden @ w[name.format("weight_hh")].T + w[name.format("bias_hh")]
    (r, z, n), (hr, hz, hn) = np.split(inputs, 3, 1), np.split(recurrent, 3, 1)
    reset, update = (0.5 + 0.5 * np.tanh(gate / 2) for gate in (r + hr, z + hz))  # logistic
    new = np.tanh(n + reset * hn)
    return new + update * (hidden - new)
