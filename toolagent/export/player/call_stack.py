"""The network with a stack of its own states."""

import numpy as np

from toolagent.export.player.gru import gru
from toolagent.export.player.response import heard


class Network:
    """Reads a context with a stack; each token fills slots, and the open ones are written."""

    def __init__(self, weights, card):
        sizes, names, self.a = card["network"], card["context_vocabulary"], len(card["vocabulary"])
        self.w, self.sizes, self.pad = weights, sizes, card["special_tokens"]["pad"]
        self.steps = max(card["action_limits"].values()) + 1
        alike = [n for n, name in enumerate(names) if name.isdigit() and not sizes["sees_digits"]]
        self.seen = np.array([alike[0] if n in alike else n for n in range(len(names))])
        self.named = np.eye(len(names), self.a, dtype="f4")  # (V, A), 0 if no action

    def begin(self, context, stage):
        """The number of the step, and what is written from at each: (B, T, C), (B, T, A)."""
        w, rows, shown = self.w, len(context), context != self.pad
        shown[:, 0] = True  # of a context that shows nothing one token is read
        x = w["context_embedding.weight"][self.seen[context]]  # (B, L, E)
        gates = np.exp(x @ w["gates.weight"].T + w["gates.bias"])
        gates = (gates / gates.sum(2, keepdims=True))[:, :, :, None]  # (B, L, 3, 1)
        hidden = np.repeat(w["call_state"][None], rows, 0)  # (B, D)
        stack = np.zeros((rows, self.sizes["stack_size"], hidden.shape[1]), "f4")
        so_far = np.eye(1, self.steps, dtype="f4").repeat(rows, 0)  # whether t slots are open
        contents = np.zeros((rows, self.steps, self.sizes["slot_size"]), "f4")
        copies, left = np.zeros((rows, self.steps, self.a), "f4"), np.ones(so_far.shape, "f4")
        for j in range(shown.sum(1).max()):
            read = hidden @ w["writer_state.weight"].T + w["writer_state.bias"]
            read = np.maximum(read + x[:, j] @ w["writer_token.weight"].T, 0)
            slots = read @ w["slots.weight"].T + w["slots.bias"]
            for slot in np.split(slots, self.sizes["slots_per_token"], 1):
                weights = so_far * (np.clip(0.5 + 0.5 * slot[:, :1], 0, 1) * shown[:, j, None])
                contents += weights[:, :, None] * slot[:, None, 1:]
                copies += weights[:, :, None] * self.named[context[:, None, j]]
                left, so_far = left - weights, so_far - weights
                so_far[:, 1:] += weights[:, :-1]
            push, pop, keep = gates[:, j].swapaxes(0, 1)  # (B, 1) each
            going_on = push * w["call_state"] + pop * stack[:, 0] + keep * hidden
            every = np.concatenate([hidden[:, None], stack, 0 * stack[:, :1]], 1)
            push, pop, keep = push[:, :, None], pop[:, :, None], keep[:, :, None]
            stack = push * every[:, :-2] + keep * every[:, 1:-1] + pop * every[:, 2:]
            hidden = gru(w, "reader.{}", x[:, j], going_on)
        return 0, contents + left[:, :, None] * w["end_content"], copies

    def step(self, token, state, response=None):
        """(B, A) logits of what follows the last token, and the new state."""
        w, a, (step, contents, copies) = self.w, self.a, state
        t = min(step, self.steps - 1)
        read = contents[:, t] + w["token_embedding.weight"][self.seen[token]]
        read = np.maximum(read + heard(w, response, self.pad), 0)
        read = np.tanh(read @ w["hidden_layer.weight"].T + w["hidden_layer.bias"])
        heads = read @ w["heads.weight"].T + w["heads.bias"]  # logits, value, gate
        logits = heads[:, :a] + 2 * heads[:, a + 1 :] * copies[:, t]
        return logits, (step + 1, contents, copies)
