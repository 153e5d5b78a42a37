"""A network whose only memory of what its tools answered is its recurrent state."""

from __future__ import annotations

from typing import NamedTuple

from toolagent.models.answer_attention import AnswerAttentionNetwork


class RecurrentOptions(NamedTuple):
    """D, the width of each GRU that reads the context, H, and what the network is told (see
    `AnswerAttentionOptions`)."""

    embedding_size: int = 160
    context_size: int = 48
    num_heads: int = 4
    sees_digits: bool = False


class RecurrentNetwork(AnswerAttentionNetwork):
    """`AnswerAttentionNetwork` that keeps no answers: its heads look at the context alone.

    An answer is read once, by the GRU; its state is all that is remembered.
    """

    Options = RecurrentOptions

    def _num_answers(self) -> int:
        return 0
