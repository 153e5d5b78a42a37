"""The checkpoints that are served: their names, their players, and what the API says about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.errors import UserError
from toolagent.rollouts.trajectory import shown_registers
from toolagent.serve.batching import Batcher
from toolagent.serve.player import Answer, Player, Question
from toolagent.serve.problems import first_example, main_fields
from toolagent.serve.schemas import Model, Models, Stage
from toolagent.tasks import Task

MAX_BATCH = 32  # a batch of expressions this size takes some 10 ms, which others wait for
MAX_CHECKPOINTS = 8


class Agents:
    """One player and one batcher for each checkpoint, by name; all of one task."""

    def __init__(self, policies: Sequence[Policy]):
        self.task: Task = policies[0].task
        names = names_of([policy.folder for policy in policies])
        self.policies = dict(zip(names, policies, strict=True))
        self.batchers: dict[str, Batcher[Question, Answer]] = {
            name: Batcher(Player(policy).answer, MAX_BATCH)
            for name, policy in self.policies.items()
        }

    @property
    def default(self) -> str:
        """The name of the agent that plays if a request names none."""
        return next(iter(self.policies))

    @functools.cached_property
    def info(self) -> Models:
        """The task and the checkpoints, as `GET /api/models` shows them."""
        task = self.task
        several = task.can_be_posed and len(task.fields[0].columns) > 1
        start = shown_registers(task, task.start(task.example()), 0)
        return Models(
            task=task.name,
            posed_by=main_fields(task),
            tells_stage=task.problem_tells_stage,
            example=first_example(task),
            tokens=list(task.vocabulary.actions),
            observed=list(task.vocabulary.observed),
            response_length=task.response_length,
            registers=list(start),
            start=start,
            stages=[
                Stage(
                    stage=stage,
                    formula=task.formula(stage),
                    digits=len(task.shown_columns(stage)) if several else None,
                    actions=int(task.action_limit(np.array([stage]))[0]),
                )
                for stage in task.stages
            ],
            models=[_describe(name, policy) for name, policy in self.policies.items()],
        )


def load_agents(
    checkpoints: Sequence[str | Path], task: str | None = None, network: str | None = None
) -> list[Policy]:
    """The checkpoints to be served.

    Args:
        checkpoints: their folders.
        task: the user's word for a task of another module (`load_policy`).
        network: the same of a network.

    Raises:
        UserError: none or too many of them, an unsound one, one twice, or two of different tasks.
    """
    if not 1 <= len(checkpoints) <= MAX_CHECKPOINTS:
        raise UserError(f"{len(checkpoints)} checkpoints; expected 1 to {MAX_CHECKPOINTS}")
    policies = [load_policy(checkpoint, task=task, network=network) for checkpoint in checkpoints]
    for policy in policies[1:]:
        if type(policy.task) is not type(policies[0].task):
            raise UserError(
                f"{policies[0].folder} is of task '{policies[0].task.name}' and {policy.folder} of "
                f"task '{policy.task.name}'; only checkpoints of one task can be compared"
            )
    folders = [policy.folder.resolve() for policy in policies]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"the checkpoint {folder} is given twice")
    return policies


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest path endings that differ: `checkpoint_000009`, `b/checkpoint`."""
    parts = [folder.resolve().parts for folder in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _describe(name: str, policy: Policy) -> Model:
    told: dict[str, Any] = policy.metadata
    return Model(
        name=name,
        network=type(policy.network).__name__,
        parameters=sum(parameter.numel() for parameter in policy.network.parameters()),
        env_steps=told.get("env_steps"),
        iteration=told.get("iteration"),
        seed=told.get("seed"),
        trained_stages=told.get("trained_stages"),
        accuracies=told.get("stages") or [],
    )
