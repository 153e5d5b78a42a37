"""Observation and action space of a task, and the observation of a batch of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

from toolagent.tasks import Problems, Task


def observation_space(task: Task) -> Dict:
    """What the agent sees: the context, the stage, its own previous token, and where tools answer
    the tokens that its last action was answered with. Never a register.

    Other libraries encode such spaces one-hot. They compute with `nvec` in its own dtype, so that
    is int64, and take the observed number for the index, so the stage's space begins at 0 even
    where the task's first stage is 1.
    """
    vocabulary = task.vocabulary
    spaces = {
        "context": MultiDiscrete(np.full(task.context_length, len(vocabulary), np.int64)),
        "stage": Discrete(task.stages.stop),
        "previous_token": Discrete(vocabulary.num_previous_tokens),
    }
    if task.response_length:
        spaces["response"] = MultiDiscrete(np.full(task.response_length, len(vocabulary), np.int64))
    return Dict(None, **spaces)  # as keywords: a mapping would be sorted


def action_space(task: Task) -> gym.spaces.Discrete:
    """All actions of the vocabulary, legal everywhere."""
    return Discrete(task.vocabulary.num_actions)


def observe(
    problems: Problems, previous_token: np.ndarray, response: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The observation of B episodes, int64 (B, ...) each; a copy: a caller may keep it.

    Args:
        problems: of B episodes.
        previous_token: (B,) integers.
        response: (B, response_length) integers; None where tools answer nothing.
    """
    observation = {
        "context": problems.context.astype(np.int64),
        "stage": problems.stage.astype(np.int64),
        "previous_token": previous_token.astype(np.int64),
    }
    if response is not None:
        observation["response"] = response.astype(np.int64)
    return observation


def pose(task: Task, stage: np.ndarray, options: dict[str, Any]) -> Problems | None:
    """The problems that the options of `reset` hold, None if they hold none.

    Args:
        task: the task.
        stage: (B,) the stages of B problems. Those that tell theirs need not be of it, unless it
            was asked for: unless `options` has 'stage' too.
        options: 'stage' and what `task.pose` takes.

    Raises:
        ValueError: an option that the task does not know, a value out of range, a problem of
            another stage than the one asked for, or more or fewer than B problems.
    """
    given = {key: value for key, value in options.items() if key != "stage"}
    if not given:
        return None
    told = task.problem_tells_stage and "stage" not in options
    problems = task.pose(None if told else stage, **given)
    if len(problems) != len(stage):
        raise ValueError(f"{len(problems)} problems were given; expected {len(stage)}")
    return problems


def check_one_stage(task: Task, stage: Any) -> int:
    """The stage as a plain integer.

    Raises:
        ValueError: not one integer, or not a stage of the task.
    """
    checked = task.check_stage(stage)
    if checked.shape != ():
        raise ValueError(f"stage is {stage}; expected one integer")
    return int(checked)


def check_render_mode(render_mode: str | None) -> None:
    """Raises ValueError for a render mode: the environments have none."""
    if render_mode is not None:
        raise ValueError(f"render_mode is '{render_mode}'; there is none to choose, only None")
