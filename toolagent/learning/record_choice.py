"""Which of the recorded episodes are learned from."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.errors import UserError
from toolagent.rollouts.records import RecordedEpisodes


def choose_episodes(episodes: RecordedEpisodes, config: Any) -> RecordedEpisodes:
    """The episodes that a configuration asks for, before `max_episodes` are drawn of them.

    Args:
        episodes: all that were recorded, the failed ones too: they tell luck from skill.
        config: an `OfflineMARWILConfig`; its `solved_only` and `min_program_success`.

    Raises:
        UserError: none is left.
    """
    if config.solved_only and not episodes.solved.any():
        raise UserError(
            f"{config.input_}: none of its {len(episodes):,} episodes is solved; use "
            "--config marwil, or --set training.solved_only=false"
        )
    wanted = episodes.solved if config.solved_only else np.ones(len(episodes), bool)
    if config.min_program_success > 0.0:
        rates = program_success(episodes)
        wanted = wanted & (rates >= config.min_program_success)
        if not wanted.any():
            raise UserError(
                f"{config.input_}: no program in its {len(episodes):,} episodes reaches "
                f"min_program_success={config.min_program_success:g}; the best has "
                f"{rates.max():.2f}"
            )
    return episodes.take(wanted)


def program_success(episodes: RecordedEpisodes) -> np.ndarray:
    """(B,) float64: how often each episode's program solved its stage, counted in the records.

        solved / (played + 1)

    over all episodes of one stage with the same actions. The one failure more keeps a program that
    was played once, and lucky, from counting as sure: to reach 0.8, four of four must be solved.
    """
    keys = np.column_stack([episodes.stage, episodes.lengths, episodes.actions]).astype(np.int8)
    rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, program = np.unique(rows, return_inverse=True)
    played = np.bincount(program)
    solved = np.bincount(program, weights=episodes.solved)
    return (solved / (played + 1))[program]
