"""The encoder-decoder with attention by learned positions."""

import numpy as np

from toolagent.export.player.gru import gru
from toolagent.tasks.tokens import ANS, EOS


class Network:
    """Two GRUs read, one in each direction; a third one writes, with H attention heads."""

    def __init__(self, weights, sizes):
        self.w, self.heads, self.alike = weights, sizes["num_heads"], not sizes["sees_digits"]

    def read(self, name, seen, shown, places):
        """(L, B, D) states of a reading GRU; padding does not change them."""
        x = self.w["context_embedding.weight"][seen].swapaxes(0, 1)  # (L, B, D)
        states, hidden = np.zeros_like(x), np.zeros_like(x[0])
        for j in places:
            after = gru(self.w, name, x[j], hidden)
            states[j] = hidden = np.where(shown[:, j], after, hidden)
        return states

    def begin(self, context, stage):
        """The state in which nothing is written yet; the last three parts are what is read."""
        w, shown = self.w, (context != EOS)[:, :, None]
        seen = np.where((context < 10) & self.alike, 0, context)  # so digits may look alike
        forward = self.read("forward_gru.{}", seen, shown, range(seen.shape[1]))
        backward = self.read("backward_gru.{}", seen, shown, reversed(range(seen.shape[1])))
        ends = np.concatenate([forward[-1], backward[0]], 1)
        hidden = np.tanh(ends @ w["summary.weight"].T + w["summary.bias"])
        both = np.concatenate([forward, backward], 2).swapaxes(0, 1)  # (B, L, 2D)
        encoded = both @ w["encoding.weight"].T + w["encoding.bias"]
        named = np.eye(18, dtype="f4")[np.minimum(context, EOS)] * (context < ANS)[:, :, None]
        coordinates = (w["attention.read_steps"][seen] * shown).cumsum(1)  # (B, L, H)
        liked = np.where(shown, w["attention.preference"][seen], np.float32(-1e9))
        places = np.repeat(w["attention.start"][None], len(context), 0)  # (B, H + K)
        return hidden, places, np.concatenate([encoded, named], 2), coordinates, liked

    def step(self, token, state):
        """(B, 18) logits of what follows the last token, and the new state."""
        w, (hidden, places, memory, coordinates, liked) = self.w, state
        token = np.where((token < 10) & self.alike, 0, token)
        places = places + w["attention.write_steps"][token]
        distance = places[:, None, : self.heads] - coordinates
        scores = liked - np.abs(w["attention.sharpness"]) * distance**2  # (B, L, H)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        look = (scores / scores.sum(1, keepdims=True)).swapaxes(1, 2)  # (B, H, L)
        found, copies = np.split(look @ memory, [-18], axis=2)  # (B, H, D), (B, H, 18)
        read = np.concatenate([found.reshape(len(token), -1), places * np.float32(0.25)], 1)
        x, more = w["token_embedding.weight"][token], read @ w["read_input.weight"].T
        hidden = gru(w, "decoder_gru.{}", x, hidden, more)
        heads = hidden @ w["heads.weight"].T + w["heads.bias"]  # logits, value, a gate a head
        logits = heads[:, :18] + 2 * (heads[:, 19:, None] * copies).sum(1)
        return logits, (hidden, places, memory, coordinates, liked)
