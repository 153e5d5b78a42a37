"""What `--json` holds: how many problems a checkpoint's greedy agent solves, and its answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolagent.checkpoints.policy import Policy
from toolagent.evaluate.problem_files import read_problems
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.certification import CHUNK, StageAccuracy, certify
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers, describe
from toolagent.tasks import Task
from toolagent.tasks.registry import reference_of_task


@dataclass(frozen=True)
class Answer:
    """The greedy agent's answer to one given problem."""

    problem: str  # '3*4+5'
    tokens: list[str]  # ['MUL', 'ADD', 'ANS']
    answer: int | None  # None: out of actions, or answered with an empty register
    solved: bool
    judged: dict[str, bool] = field(default_factory=dict)  # what else is told of the program

    def record(self) -> dict[str, Any]:
        """As the JSON file shows it."""
        result = dict(vars(self))
        return result | result.pop("judged")


def certified(policy: Policy) -> tuple[dict[str, Any], list[StageAccuracy]]:
    """The document on every problem of every stage, or where they are too many on a fixed sample;
    and the counts in it."""
    stages = certify(policy.network, policy.task)
    return document_of(policy, stages), stages


def answered_file(policy: Policy, file: Path) -> tuple[dict[str, Any], list[StageAccuracy]]:
    """The document on the problems of a file, with the answers; and the counts in it.

    Raises:
        UserError: the file, or a line of it, is not as it should be.
    """
    problems = read_problems(file, policy.task)
    stages, answered = answer_problems(policy.network, policy.task, problems)
    document = document_of(policy, stages)
    depth = policy.task.depth(problems)
    if depth is not None:
        document["depths"] = by_depth(depth, np.array([answer.solved for answer in answered]))
    return document | {"answers": [answer.record() for answer in answered]}, stages


def by_depth(depth: np.ndarray, solved: np.ndarray) -> list[dict[str, Any]]:
    """A record for each depth that occurs, of (B,) depths and (B,) bool, what was solved."""
    counts = [(each, depth == each) for each in np.unique(depth).tolist()]
    return [
        {
            "depth": each,
            "problems": int(rows.sum()),
            "solved": int(solved[rows].sum()),
            "accuracy": float(solved[rows].mean()),
        }
        for each, rows in counts
    ]


def document_of(policy: Policy, stages: Iterable[StageAccuracy]) -> dict[str, Any]:
    """What every document has."""
    document: dict[str, Any] = {"task": reference_of_task(policy.task)}
    if policy.metadata.get("trained_stages") is not None:
        document["trained_stages"] = policy.metadata["trained_stages"]
    return document | {"stages": [row.record() for row in stages]}


def answer_problems(
    network: AgentNetwork, task: Task, problems: Any
) -> tuple[list[StageAccuracy], list[Answer]]:
    """Plays the given problems greedily.

    Returns:
        One count for each stage that occurs, and one answer a problem in their order.
    """
    answered: list[Answer] = []
    for start in range(0, len(problems), CHUNK):
        part = problems.take(np.arange(start, min(start + CHUNK, len(problems))))
        batch = play(network, task, part)
        judged = task.judge(part, batch.actions, batch.lengths)
        for row, answer in enumerate(answers(task, part, batch)):
            program = batch.actions[row, : batch.lengths[row]]
            answered.append(
                Answer(
                    problem=describe(task, part, row)[1],
                    tokens=task.vocabulary.text(program).split(),
                    answer=answer,
                    solved=bool(batch.solved[row]),
                    judged={name: bool(right[row]) for name, right in judged.items()},
                )
            )
    stages = []
    for stage in np.unique(problems.stage):
        of_stage = [answered[row] for row in np.flatnonzero(problems.stage == stage)]
        stages.append(
            StageAccuracy(
                int(stage),
                len(of_stage),
                sum(answer.solved for answer in of_stage),
                judged={
                    name: sum(answer.judged[name] for answer in of_stage)
                    for name in task.judgements
                },
            )
        )
    return stages, answered
