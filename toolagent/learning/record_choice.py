"""Which of the recorded episodes are learned from."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.errors import UserError
from toolagent.rollouts.records import RecordedEpisodes

_DRAW_STREAM = 0x64726177  # 'draw'


def choose_episodes(episodes: RecordedEpisodes, config: Any) -> RecordedEpisodes:
    """The episodes that a configuration asks for.

    `max_episodes` are drawn first, of all of them, and the rest is chosen as if no others had been
    recorded: what can be learned from so many records is not helped by those that were left out.

    Args:
        episodes: all that were recorded, the failed ones too: they tell luck from skill.
        config: an `OfflineMARWILConfig`; its `max_episodes`, `solved_only`, `min_program_success`
            and `seed`.

    Raises:
        UserError: none is left.
    """
    if config.max_episodes is not None and config.max_episodes < len(episodes):
        seed = None if config.seed is None else (int(config.seed), _DRAW_STREAM)
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        episodes = episodes.take(rng.permutation(len(episodes))[: config.max_episodes])
    among = f"{config.input_}: of {len(episodes):,} episodes"
    if config.solved_only and not episodes.solved.any():
        raise UserError(
            f"{among} none is solved; use --config marwil, or --set training.solved_only=false"
        )
    wanted = episodes.solved if config.solved_only else np.ones(len(episodes), bool)
    if config.min_program_success > 0.0:
        rates = program_success(episodes)
        wanted = wanted & (rates >= config.min_program_success)
        if not wanted.any():
            raise UserError(
                f"{among} none is of a program that reaches min_program_success="
                f"{config.min_program_success:g}, the best has {rates.max():.2f}; lower it, or "
                "--set training.min_program_success=0"
            )
    return episodes.take(wanted)


def program_success(episodes: RecordedEpisodes) -> np.ndarray:
    """(B,) float64: how often each episode's program solved its stage, counted in the records.

        solved / (played + 1)

    over all episodes of one stage with the same actions. The one failure more keeps a program that
    was played once, and lucky, from counting as sure: to reach 0.8, four of four must be solved.

    It tells luck from skill where one program can solve a whole stage. Where each problem has a
    program of its own, as in `expression`, most are played too seldom to be told.
    """
    keys = np.column_stack([episodes.stage, episodes.lengths, episodes.actions]).astype(np.int8)
    rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, program = np.unique(rows, return_inverse=True)
    played = np.bincount(program)
    solved = np.bincount(program, weights=episodes.solved)
    return (solved / (played + 1))[program]
