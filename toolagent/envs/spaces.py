"""Observation and action space of a task, and the observation of a batch of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

from toolagent.tasks import Problems, Task
from toolagent.vocabulary import NUM_TOKENS


def observation_space(task: Task) -> Dict:
    """What the agent sees: the context, the stage and its own previous token. Never a register."""
    return Dict(
        context=MultiDiscrete(np.full(task.context_length, task.context_vocabulary), dtype=np.int8),
        stage=Discrete(task.num_stages, start=task.first_stage),
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


def start_stage(task: Task, stage: int | None) -> int:
    """The stage an environment begins with: the one asked for, else the task's first.

    Raises:
        ValueError: not a stage of the task.
    """
    return task.first_stage if stage is None else int(task.check_stage(stage))


def pose_or_sample(
    task: Task, rng: np.random.Generator, stage: np.ndarray, options: dict[str, Any]
) -> Problems:
    """As many problems as `stage` (B,) has: those given in `options`, else fresh ones.

    Args:
        task: the task.
        rng: the stream of fresh problems.
        stage: (B,) the stages. Given problems that tell theirs need not be of it, unless it was
            asked for: unless `options` has 'stage' too.
        options: of `reset`; 'stage' and what `task.pose` takes.

    Raises:
        ValueError: an option that the task does not know, a value out of range, a problem of
            another stage than the one asked for, or more or fewer than B problems.
    """
    given = {key: value for key, value in options.items() if key != "stage"}
    if not given:
        return task.sample(rng, stage)
    told = task.problem_tells_stage and "stage" not in options
    problems = task.pose(None if told else stage, **given)
    if len(problems) != len(stage):
        raise ValueError(f"{len(problems)} problems were given; expected {len(stage)}")
    return problems
