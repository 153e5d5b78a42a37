"""Networks in the forms in which they are run, on random episodes: for comparison."""

import dataclasses
import itertools

import numpy as np
import torch

from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, EOS, MUL, NUM_TOKENS, SUB

OPEN, CLOSE = 18, 19  # read, never written
INTERFACE = get_task("expression").interface


@dataclasses.dataclass
class Batch:
    """B episodes."""

    context: torch.Tensor  # (B, L)
    stage: torch.Tensor  # (B,)
    tokens: torch.Tensor  # (B, T) the token before each step
    lengths: torch.Tensor  # (B,) the steps that count
    responses: torch.Tensor | None = None  # (B, T, R) what each of these tokens was answered with

    @property
    def actions(self):
        """(B, T), `EOS` after the end."""
        actions = torch.cat([self.tokens[:, 1:], torch.full_like(self.tokens[:, :1], ANS)], 1)
        return torch.where(self.alive, actions, torch.tensor(EOS)).to(torch.int8)

    @property
    def alive(self):
        """(B, T) bool."""
        return torch.arange(self.tokens.shape[1]) < self.lengths.unsqueeze(1)

    @property
    def columns(self):
        """The arguments of `unroll_episodes`."""
        given = (self.context, self.stage, self.actions, self.lengths)
        if self.responses is None:
            return given
        last = torch.full_like(self.responses[:, :1], EOS)
        return (*given, torch.cat([self.responses[:, 1:], last], 1))

    def take(self, rows):
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Batch(*(None if column is None else column[rows] for column in columns))

    def observed(self, steps):
        """The responses at these steps, as arguments: none where tools answer nothing."""
        return () if self.responses is None else (self.responses[:, steps],)


def perturbed(network, scale=0.3):
    """torch starts biases near 0, where a forgotten one would not be seen."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return network


def make_batch(seed, size, steps=6, group=1, answered=0):
    """Contexts of random tokens, `CTX` behind them; `group` equal ones side by side, whose episodes
    begin alike.

    Half of the responses of `answered` tokens are empty, the others have gaps, and tokens that
    can't be written.
    """
    rng = np.random.default_rng(seed)
    context = np.full((size, 9), EOS)
    for row in range(size):
        shown = rng.integers(0, 9)
        context[row, :shown] = rng.choice([*range(10), MUL, ADD, SUB, OPEN, CLOSE], shown)
        context[row, shown] = CTX
        context[row] = context[row - row % group]
    tokens = rng.integers(0, NUM_TOKENS, (size, steps))
    tokens[:, 0] = CTX
    stage, lengths = rng.integers(1, 9, size), rng.integers(1, steps + 1, size)
    responses = None
    if answered:
        shape = (size, steps, answered)
        responses = np.where(rng.random(shape) < 0.3, EOS, rng.integers(0, CLOSE + 1, shape))
        responses[..., 1:][rng.random(shape[:2]) < 0.2] = EOS  # short ones, refusals among them
        responses[rng.random(shape[:2]) < 0.5] = EOS
        responses[:, 0] = EOS
    for row in range(size):
        if row % group:
            alike = rng.integers(0, steps + 1)
            stage[row] = stage[row - 1]
            for column in (tokens,) if responses is None else (tokens, responses):
                column[row, :alike] = column[row - 1, :alike]
    responses = None if responses is None else torch.tensor(responses, dtype=torch.int8)
    return Batch(
        torch.tensor(context, dtype=torch.int8),
        torch.tensor(stage),
        torch.tensor(tokens),
        torch.tensor(lengths),
        responses,
    )


# The network's forms: logits (B, T, 18), values (B, T), the hidden state after the last step ----


@torch.no_grad()
def unrolled(network, batch, cuts=()):
    """In one piece, or in several with the hidden state carried on."""
    encoding, hidden = network.begin(batch.context, batch.stage)
    logits, values = [], []
    for start, stop in itertools.pairwise([0, *cuts, batch.tokens.shape[1]]):
        part = slice(start, stop)
        piece_logits, piece_values, hidden = network.unroll(
            batch.tokens[:, part], encoding, hidden, *batch.observed(part)
        )
        logits.append(piece_logits)
        values.append(piece_values)
    return torch.cat(logits, 1), torch.cat(values, 1), hidden


def in_pieces(network, batch):
    return unrolled(network, batch, cuts=[cut for cut in (1, 4) if cut < batch.tokens.shape[1]])


@torch.no_grad()
def stepped(network, batch):
    table = network.step_table()
    encoding, hidden = network.begin(batch.context, batch.stage)
    logits, values = [], []
    for step, column in enumerate(batch.tokens.t()):
        before, kept = hidden, hidden.clone()
        step_logits, step_values, hidden = network.step(
            table, column.int(), encoding, hidden, *batch.observed(step)
        )
        assert torch.equal(before, kept)  # whoever keeps a state keeps it as it was
        logits.append(step_logits)
        values.append(step_values)
    return torch.stack(logits, 1), torch.stack(values, 1), hidden


@torch.no_grad()
def as_episodes(network, batch):
    """Without a hidden state at the end; 0 at and after an episode's end."""
    return network.unroll_episodes(*batch.columns)


FORMS = [unrolled, in_pieces, stepped, as_episodes]


def counted(form, network, batch):
    """Logits and values, where nothing counts after the end: all forms alike."""
    logits, values, *_ = form(network, batch)
    return logits * batch.alive.unsqueeze(-1), values * batch.alive


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
