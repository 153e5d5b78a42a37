"""Observation and action space of a task, and the observation of a batch of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

from toolagent.tasks import Problems, Task
from toolagent.tokens import NUM_TOKENS


def observation_space(task: Task) -> Dict:
    """What the agent sees: the context, the stage and its own previous token. Never a register."""
    return Dict(
        context=MultiDiscrete(np.full(task.context_length, task.context_vocabulary), dtype=np.int8),
        stage=Discrete(task.num_stages),
        previous_token=Discrete(NUM_TOKENS),
    )


def action_space() -> gym.spaces.Discrete:
    """All 18 tokens, legal everywhere."""
    return Discrete(NUM_TOKENS)


def observe(problems: Problems, previous_token: np.ndarray) -> dict[str, np.ndarray]:
    """The observation of B episodes, (B, ...) each; a copy, so that a caller may keep it."""
    return {
        "context": problems.context.copy(),
        "stage": problems.stage.astype(np.int64),
        "previous_token": previous_token.astype(np.int64),
    }


def pose_or_sample(
    task: Task, rng: np.random.Generator, stage: np.ndarray, options: dict[str, Any]
) -> Problems:
    """Problems of `stage` (B,): the ones given in `options` besides 'stage', else fresh ones.

    Raises:
        ValueError: an option that the task does not know, or a value out of range.
    """
    given = {key: value for key, value in options.items() if key != "stage"}
    if given:
        return task.pose(stage, **given)
    return task.sample(rng, stage)
