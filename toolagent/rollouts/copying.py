"""Explorers that write what is seldom refused, and copy what they have read."""

from __future__ import annotations

import numpy as np
import torch

from toolagent.rollouts.explorers import ExplorersStep, ExplorerTables, certain
from toolagent.tasks import Task

MOST_CALLS = 4  # in which an explorer chooses for itself
UNUSED_FIRST = 0.75  # the chance that a span is looked for among those not copied yet
STARTS_HERE = 0.55  # the chance that it begins with the next call; else with a later one
MOST_ANSWERS = 16  # of an episode that can be copied


class CopyingExplorers:
    """E episodes that follow the policy but for one to four calls.

    There they write, by the machine's status, tokens that are seldom refused. A token that has
    been seen in a context or in an answer is *data*: it is written as part of a *span* only, which
    is a token of the problem's context or a whole answer to the episode. No two spans stand side
    by side where anything else may be written. Among the other tokens, and any span that may begin
    here taken together, all are equally likely. Spans that the episode has not copied yet are
    preferred: most of what is asked for or answered is needed once.

    Args:
        rng: draws all choices.
        task: whose tools answer.
        context: (E, L) of the problems.
        tables: what is known of the tokens.
    """

    def __init__(
        self, rng: np.random.Generator, task: Task, context: np.ndarray, tables: ExplorerTables
    ):
        episodes, length = len(context), task.response_length
        self.rng, self.context = rng, context
        self.accepted = np.isfinite(tables.log_weights)  # (statuses, A)
        self.seen = tables.seen
        self.pad_token, self.refusal = task.vocabulary.pad_token, task.refusal_token
        self.answers = np.full((episodes, MOST_ANSWERS, length), self.pad_token, np.int8)
        self.num_answers = np.zeros(episodes, np.int64)
        self.first_call = rng.geometric(STARTS_HERE, episodes) - 1
        self.last_call = self.first_call + rng.integers(0, MOST_CALLS, episodes)
        # What is being copied, and how much of it is written.
        self.span = np.full((episodes, max(length, 1) + 1), self.pad_token, np.int8)
        self.written = np.zeros(episodes, np.int64)
        self.after_span = np.zeros(episodes, bool)
        # The spans that have been copied: places of the context, then answers.
        self.used = np.zeros((episodes, context.shape[1] + MOST_ANSWERS), bool)

    def __len__(self) -> int:
        return len(self.context)

    def log_probabilities(self, step: ExplorersStep) -> torch.Tensor:
        """(n, A): the policy's, or all on one token (see `Explorers`)."""
        rows = step.rows
        if step.response is not None:
            self._take_in(rows, step.response)
        log_probabilities = torch.log_softmax(step.logits, 1)
        call = self.num_answers[rows]
        exploring = (call >= self.first_call[rows]) & (call <= self.last_call[rows])
        if not exploring.any():
            return log_probabilities
        rows, places = rows[exploring], np.flatnonzero(exploring)
        tokens = self.span[rows, self.written[rows]].astype(np.int64)
        choosing = tokens == self.pad_token  # nothing is being copied
        if choosing.any():
            status = step.status()[places[choosing]]
            tokens[choosing] = self._choose(rows[choosing], self.accepted[status])
        self.written[rows[~choosing]] += 1
        ended = self.span[rows, self.written[rows]] == self.pad_token
        self.after_span[rows] = ended & (self.written[rows] > 0)
        log_probabilities[torch.from_numpy(places)] = certain(
            torch.from_numpy(tokens), log_probabilities.shape[1]
        )
        return log_probabilities

    def _take_in(self, rows: np.ndarray, response: np.ndarray) -> None:
        """Keeps the answers among (n, R) responses; after any response a new call begins."""
        responded = response[:, 0] != self.pad_token
        rows, response = rows[responded], response[responded]
        self.span[rows] = self.pad_token
        self.written[rows], self.after_span[rows] = 0, False
        answered = response[:, 0] != self.refusal
        rows, response = rows[answered], response[answered]
        self.answers[rows, np.minimum(self.num_answers[rows], MOST_ANSWERS - 1)] = response
        self.num_answers[rows] += 1

    def _choose(self, rows: np.ndarray, accepted: np.ndarray) -> np.ndarray:
        """(n,) tokens where none is being copied.

        Args:
            rows: (n,) of the episodes.
            accepted: (n, A) bool.
        """
        number, actions = accepted.shape
        spans = np.concatenate([self.context[rows], self.answers[rows, :, 0]], 1)  # first tokens
        readable = spans < actions
        known = np.where(readable, spans, 0)
        may_copy = readable & self.seen[known] & np.take_along_axis(accepted, known, 1)
        others = accepted & ~self.seen  # (n, A)
        may_copy &= ~(self.after_span[rows] & others.any(1))[:, None]
        weight = others.sum(1)
        copies = self.rng.random(number) * (weight + may_copy.any(1)) >= weight
        copies &= may_copy.any(1)
        # One of what may be written; where there is none, what is accepted all the same; or any.
        nothing = ~(others.any(1) | copies)
        others[nothing] = accepted[nothing] | ~accepted[nothing].any(1, keepdims=True)
        tokens = np.where(others, self.rng.random(others.shape), -1.0).argmax(1)
        unused = may_copy & ~self.used[rows]
        unused &= (self.rng.random(number) < UNUSED_FIRST)[:, None]
        may_copy = np.where(unused.any(1, keepdims=True), unused, may_copy)
        place = np.where(may_copy, self.rng.random(may_copy.shape), -1.0).argmax(1)
        self.span[rows] = self.pad_token
        self.written[rows], self.after_span[rows] = 0, False
        copying, place = rows[copies], place[copies]
        self.used[copying, place] = True
        length = self.context.shape[1]
        answer = self.answers[copying, np.maximum(place - length, 0)]
        token = self.context[copying, np.minimum(place, length - 1)]
        whole = np.where((place >= length)[:, None], answer, self.pad_token)
        whole[place < length, 0] = token[place < length]
        self.span[copying, :-1] = whole
        self.written[copying] = 1
        tokens[copies] = whole[:, 0]
        return tokens
