"""The stage-embedded GRU."""

import numpy as np

from toolagent.export.player.gru import gru
from toolagent.export.player.response import heard


class Network:
    """h_0 = tanh(mean of the context's embeddings + the stage's); then a GRU writes."""

    def __init__(self, weights, card):
        self.w, self.pad = weights, card["special_tokens"]["pad"]

    def begin(self, context, stage):
        """The state (B, D) in which nothing is written yet."""
        shown = (context != self.pad)[:, :, None]  # (B, L, 1)
        total = (self.w["token_embedding.weight"][context] * shown).sum(1)
        mean = total / np.maximum(shown.sum(1), 1).astype("f4")
        return np.tanh(mean + self.w["stage_embedding.weight"][stage])

    def step(self, token, hidden, response=None):
        """(B, A) logits of what follows the last token, and the new state."""
        w = self.w
        x, more = w["token_embedding.weight"][token], heard(w, response, self.pad)
        hidden = gru(w, "gru.{}_l0", x, hidden, more)
        return hidden @ w["policy_head.weight"].T + w["policy_head.bias"], hidden
