"""The encoder-decoder with attention by learned positions."""

import numpy as np

from toolagent.export.player.gru import gru


class Network:
    """Two GRUs read, one in each direction; a third one writes, with H attention heads."""

    def __init__(self, weights, card):
        self.w, self.heads = weights, card["network"]["num_heads"]
        self.pad = card["special_tokens"]["pad"]
        self.actions = len(card["vocabulary"])
        digits = [n for n, name in enumerate(card["context_vocabulary"]) if name.isdigit()]
        self.alike = [] if card["network"]["sees_digits"] else digits

    def seen(self, tokens):
        """The tokens as they look to the network: its digits may look alike."""
        return np.where(np.isin(tokens, self.alike), min(self.alike, default=0), tokens)

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
        w, shown = self.w, (context != self.pad)[:, :, None]
        seen = self.seen(context)
        forward = self.read("forward_gru.{}", seen, shown, range(seen.shape[1]))
        backward = self.read("backward_gru.{}", seen, shown, reversed(range(seen.shape[1])))
        ends = np.concatenate([forward[-1], backward[0]], 1)
        hidden = np.tanh(ends @ w["summary.weight"].T + w["summary.bias"])
        both = np.concatenate([forward, backward], 2).swapaxes(0, 1)  # (B, L, 2D)
        encoded = both @ w["encoding.weight"].T + w["encoding.bias"]
        named = np.eye(self.actions, dtype="f4")[np.minimum(context, self.actions - 1)]
        named = named * (context < self.actions)[:, :, None]
        coordinates = (w["attention.read_steps"][seen] * shown).cumsum(1)  # (B, L, H)
        liked = np.where(shown, w["attention.preference"][seen], np.float32(-1e9))
        places = np.repeat(w["attention.start"][None], len(context), 0)  # (B, H + K)
        return hidden, places, np.concatenate([encoded, named], 2), coordinates, liked

    def step(self, token, state):
        """(B, A) logits of what follows the last token, and the new state."""
        w, (hidden, places, memory, coordinates, liked) = self.w, state
        token = self.seen(token)
        places = places + w["attention.write_steps"][token]
        distance = places[:, None, : self.heads] - coordinates
        scores = liked - np.abs(w["attention.sharpness"]) * distance**2  # (B, L, H)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        look = (scores / scores.sum(1, keepdims=True)).swapaxes(1, 2)  # (B, H, L)
        found, copies = np.split(look @ memory, [-self.actions], axis=2)  # (B, H, D), (B, H, A)
        read = np.concatenate([found.reshape(len(token), -1), places * np.float32(0.25)], 1)
        x, more = w["token_embedding.weight"][token], read @ w["read_input.weight"].T
        hidden = gru(w, "decoder_gru.{}", x, hidden, more)
        heads = hidden @ w["heads.weight"].T + w["heads.bias"]  # logits, value, a gate a head
        gates = heads[:, self.actions + 1 :, None]
        logits = heads[:, : self.actions] + 2 * (gates * copies).sum(1)
        return logits, (hidden, places, memory, coordinates, liked)
