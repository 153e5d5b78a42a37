"""Attention by place, on axes that are learned: where to read next, without being told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolagent.models.softmax import short_softmax
from toolagent.vocabulary import Vocabulary

_FAR = -1e9  # a score that no weight survives


class CoordinateAttention(nn.Module):
    """H heads, each with an axis of its own on which reader and writer have a place.

    Reading the context's token x moves along axis h by u_h[x]; writing a token a by v_h[a]. The
    head looks where both are at the same place:

        c_jh = u_h[x_1] + ... + u_h[x_j]              the place of context token j
        q_th = s_h + v_h[a_0] + ... + v_h[a_(t-1)]    the writer's place at step t (a_0: `start`)
        w_thj = softmax over j of (-|beta_h| (q_th - c_jh)^2 + b_h[x_j])

    All of u, v, s, beta and b are learned from reward. At first every token, read or written,
    counts about as much, so the heads move through the context at an even pace; training makes of
    them what it needs (where digits count and operators do not, a head walks from operand to
    operand). K further *counters* are places of the writer without an axis to read on.

    The places depend on the tokens alone, not on a hidden state: over a whole episode that is
    known they are cumulative sums, and the attention of all its steps is computed at once.

    Sources: Graves 2013, "Generating sequences with recurrent neural networks", section 5.1 (a
    window that moves along the text by learned steps; there over a fixed axis, by the hidden
    state).

    Args:
        vocabulary: of the task; C tokens can be read, A before a step.
        num_heads: H.
        num_counters: K.
        learned: False fixes u and v to 1 for digits and 0 else (the counters count digits less
            operations: the stack's depth), and confines the heads to digits and the context's
            end: then the reading order is given, not learned. For comparison.
    """

    def __init__(
        self, vocabulary: Vocabulary, num_heads: int, num_counters: int, learned: bool = True
    ):
        super().__init__()
        self.num_heads, self.num_counters = num_heads, num_counters
        values = (
            _even_pace(vocabulary, num_heads, num_counters)
            if learned
            else _operand_by_operand(vocabulary, num_heads, num_counters)
        )
        for name, value in values.items():
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    # Parameters, or buffers where they are not learned.
    read_steps: Tensor  # (C, H): u
    write_steps: Tensor  # (A, H + K): v
    start: Tensor  # (H + K,): s
    sharpness: Tensor  # (H,): beta
    preference: Tensor  # (C, H): b

    @property
    def width(self) -> int:
        """H + K: how many places a writer has."""
        return self.num_heads + self.num_counters

    def place_context(self, context: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """The places and the preferences of (P, L) tokens: (P, H, L) each.

        Args:
            context: (P, L) integers.
            shown: (P, L) bool: the tokens that count; the others are never looked at.
        """
        steps = self.read_steps[context] * shown.unsqueeze(-1)  # (P, L, H)
        preference = self.preference[context].masked_fill(~shown.unsqueeze(-1), _FAR)
        return torch.cumsum(steps, 1).transpose(1, 2), preference.transpose(1, 2)

    def places(self, start: Tensor, previous_tokens: Tensor) -> Tensor:
        """The writer's places at each of T steps.

        Args:
            start: (B, H + K) before the first of them.
            previous_tokens: (B, T) the token before each step.

        Returns:
            (B, T, H + K).
        """
        return start.unsqueeze(1) + torch.cumsum(self.write_steps[previous_tokens], 1)

    def weights(self, places: Tensor, coordinates: Tensor, preference: Tensor) -> Tensor:
        """Where the heads look.

        Args:
            places: (B, T, H + K).
            coordinates: (B, H, L), of `place_context`.
            preference: (B, H, L), of `place_context`.

        Returns:
            (B, T, H, L), summing to 1 over L.
        """
        distance = places[..., : self.num_heads, None] - coordinates.unsqueeze(1)
        scores = torch.addcmul(
            preference.unsqueeze(1), distance.square(), -self.sharpness.abs().unsqueeze(-1)
        )
        return short_softmax(scores)


def _even_pace(vocabulary: Vocabulary, heads: int, counters: int) -> dict[str, Tensor]:
    read, written = len(vocabulary), vocabulary.num_previous_tokens
    return {
        "read_steps": 0.5 + 0.2 * torch.randn(read, heads),
        "write_steps": torch.cat(
            [0.5 + 0.2 * torch.randn(written, heads), 0.2 * torch.randn(written, counters)], 1
        ),
        "start": torch.cat([torch.linspace(-0.5, 1.0, heads), torch.zeros(counters)]),
        "sharpness": torch.full((heads,), 0.5),
        "preference": torch.zeros(read, heads),
    }


def _operand_by_operand(vocabulary: Vocabulary, heads: int, counters: int) -> dict[str, Tensor]:
    """The first operand not yet pushed, the one before, the next one, the one before that."""
    try:
        digits = [vocabulary.token(digit) for digit in "0123456789"]
        operators = [vocabulary.token(name) for name in ("MUL", "ADD", "SUB")]
    except ValueError as error:
        raise ValueError(f"reading can't be 'operands' with this vocabulary: {error}") from None
    end = vocabulary.start_token  # the context's end, one place behind the last operand
    read_steps = torch.zeros(len(vocabulary), heads)
    read_steps[[*digits, end]] = 1.0
    write_steps = torch.zeros(vocabulary.num_previous_tokens, heads + counters)
    write_steps[digits] = 1.0
    write_steps[operators, heads:] = -1.0
    offsets = torch.tensor([1.0, 0.0, 2.0, -1.0])
    start = torch.zeros(heads + counters)
    start[:heads] = offsets.repeat(-(-heads // len(offsets)))[:heads]
    preference = torch.full((len(vocabulary), heads), -30.0)
    preference[[*digits, end]] = 0.0
    preference[vocabulary.pad_token] = _FAR
    return {
        "read_steps": read_steps,
        "write_steps": write_steps,
        "start": start,
        "sharpness": torch.full((heads,), 8.0),
        "preference": preference,
    }
