"""The GRU with attention over the context and over the answers seen so far."""

import numpy as np

from toolagent.export.player.gru import gru
from toolagent.export.player.reading import read_context
from toolagent.export.player.response import heard


class Network:
    """Two GRUs read, a third writes; H heads, keys and values are W wide; K answers are kept."""

    def __init__(self, weights, card):
        sizes, names, self.a = card["network"], card["context_vocabulary"], len(card["vocabulary"])
        self.w, self.heads, self.pad = weights, sizes["num_heads"], card["special_tokens"]["pad"]
        self.length = card["response_length"]
        self.kept = sizes.get("num_answers", 0) if self.length else 0
        alike = [n for n, name in enumerate(names) if name.isdigit() and not sizes["sees_digits"]]
        self.seen = np.array([alike[0] if n in alike else n for n in range(len(names))])
        self.named = np.eye(len(names), self.a, dtype="f4")  # (V, A), 0 if no action

    def begin(self, context, stage):
        """The state in which nothing is written yet and nothing answered."""
        w, seen, shown = self.w, self.seen[context], (context != self.pad)[:, :, None]
        shown[:, 0] = True  # of a context that shows nothing one token is read
        both, ends = read_context(w, seen, shown)
        hidden = np.tanh(ends @ w["summary.weight"].T + w["summary.bias"])
        both = both @ w["context_read.weight"].T + w["context_read.bias"]
        keys, values = np.split(both + w["context_tokens"][seen], 2, axis=2)  # (B, L, W) each
        values = np.concatenate([values, self.named[context]], 2)
        before = np.pad(context[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        answers = np.full((len(context), self.kept, self.length), self.pad)
        return hidden, answers, np.zeros(len(context), int), (keys, values, before, shown[:, :, 0])

    def step(self, token, state, response=None):
        """(B, A) logits of what follows the last token, and the new state."""
        w, a, (hidden, answers, number, context) = self.w, self.a, state
        x, more = w["token_embedding.weight"][self.seen[token]], heard(w, response, self.pad)
        hidden = gru(w, "decoder_gru.{}", x, hidden, more)
        if self.kept and response is not None:
            # An answer is kept if something in it can be written.
            rows = np.flatnonzero(((response < a) & (response != self.pad)).any(1))
            answers, number = answers.copy(), number.copy()
            answers[rows, number[rows] % self.kept] = response[rows]
            number[rows] += 1
        queries = hidden @ w["query.weight"].T + w["query.bias"]
        queries = queries.reshape(len(token), self.heads, -1)  # (B, H, W)
        queries = queries / np.float32(queries.shape[2] ** 0.5)

        def look(keys, before, shown, follows):
            """(B, H, places) scores."""
            scores = queries @ keys.swapaxes(1, 2) + follows[:, None] * (before == token)[:, None]
            return np.where(shown[:, None], scores, np.float32(-1e9))

        token = token[:, None]
        keys, values, before, shown = context
        scores = look(keys, before, shown, w["follows_context"])
        if self.kept:
            age = (number[:, None] - 1 - np.arange(self.kept)) % self.kept  # 0: the newest
            both = w["answer_tokens"][answers] + w["answer_places"]  # (B, K, R, 2W)
            keys, told = np.split(both, 2, axis=3)
            keys = keys + (w["from_newest"][age] + w["from_first"])[:, :, None]
            keys = keys.reshape(len(token), -1, keys.shape[3])
            before = np.pad(answers[:, :, :-1], ((0, 0), (0, 0), (1, 0)), constant_values=-1)
            flat = answers.reshape(len(token), -1)
            before = before.reshape(flat.shape)
            more = look(keys, before, flat != self.pad, w["follows_answer"])
            told = np.concatenate([told.reshape(keys.shape), self.named[flat]], 2)
            scores, values = np.concatenate([scores, more], 2), np.concatenate([values, told], 1)
        scores = np.exp(scores - scores.max(2, keepdims=True))
        found = scores / scores.sum(2, keepdims=True) @ values  # (B, H, W + A)
        found, copies = np.split(found, [-a], axis=2)
        read = np.concatenate([hidden, found.reshape(len(token), -1)], 1)
        read = np.tanh(read @ w["read_out.weight"].T + w["read_out.bias"])
        heads = read @ w["heads.weight"].T + w["heads.bias"]  # logits, value, a gate a head
        gates = np.logaddexp(np.float32(0), heads[:, a + 1 :, None])
        logits = heads[:, :a] + 2 * (gates * copies).sum(1)
        return logits, (hidden, answers, number, context)
