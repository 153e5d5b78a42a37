"""The encoder-decoder with attention by learned positions."""

import numpy as np

from toolagent.export.player.gru import gru
from toolagent.export.player.reading import read_context
from toolagent.export.player.response import heard


class Network:
    """Two GRUs read, one in each direction; a third one writes, with H attention heads."""

    def __init__(self, weights, card):
        sizes, names, self.a = card["network"], card["context_vocabulary"], len(card["vocabulary"])
        self.w, self.heads, self.pad = weights, sizes["num_heads"], card["special_tokens"]["pad"]
        alike = [n for n, name in enumerate(names) if name.isdigit() and not sizes["sees_digits"]]
        self.seen = np.array([alike[0] if n in alike else n for n in range(len(names))])

    def begin(self, context, stage):
        """The state in which nothing is written yet; the last three parts are what is read."""
        w, seen, shown = self.w, self.seen[context], (context != self.pad)[:, :, None]
        shown[:, 0] = True  # of a context that shows nothing one token is read
        both, ends = read_context(w, seen, shown)
        hidden = np.tanh(ends @ w["summary.weight"].T + w["summary.bias"])
        encoded = both @ w["encoding.weight"].T + w["encoding.bias"]
        named = np.eye(len(self.seen), self.a, dtype="f4")[context]  # 0 if no action
        coordinates = (w["attention.read_steps"][seen] * shown).cumsum(1)  # (B, L, H)
        liked = np.where(shown, w["attention.preference"][seen], np.float32(-1e9))
        places = np.repeat(w["attention.start"][None], len(context), 0)  # (B, H + K)
        return hidden, places, np.concatenate([encoded, named], 2), coordinates, liked

    def step(self, token, state, response=None):
        """(B, A) logits of what follows the last token, and the new state."""
        w, a, (hidden, places, memory, coordinates, liked) = self.w, self.a, state
        places = places + w["attention.write_steps"][self.seen[token]]
        distance = places[:, None, : self.heads] - coordinates
        scores = liked - np.abs(w["attention.sharpness"]) * distance**2  # (B, L, H)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        look = (scores / scores.sum(1, keepdims=True)).swapaxes(1, 2)  # (B, H, L)
        found, copies = np.split(look @ memory, [-a], axis=2)  # (B, H, D), (B, H, A)
        read = np.concatenate([found.reshape(len(token), -1), places * np.float32(0.25)], 1)
        x, more = w["token_embedding.weight"][self.seen[token]], read @ w["read_input.weight"].T
        hidden = gru(w, "decoder_gru.{}", x, hidden, more + heard(w, response, self.pad))
        heads = hidden @ w["heads.weight"].T + w["heads.bias"]  # logits, value, a gate a head
        logits = heads[:, :a] + 2 * (heads[:, a + 1 :, None] * copies).sum(1)
        return logits, (hidden, places, memory, coordinates, liked)
