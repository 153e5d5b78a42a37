"""One episode step by step: the hidden state, the oracle's continuation, and the runner-up's.

For display only; nothing of it is learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.conversation import Source, sources
from toolagent.rollouts.play import GivenTokens, play
from toolagent.rollouts.trajectory import Step, Trajectory, endings
from toolagent.tasks import Task


@dataclass(frozen=True)
class Future:
    """A whole episode in which one token was another."""

    tokens: tuple[int, ...]
    answered: bool  # else it ran out of actions
    answer: int | None
    solved: bool


@dataclass(frozen=True)
class Look:
    """One step under the microscope."""

    number: int  # from 1
    step: Step
    hidden: tuple[float, ...]  # (S,) that the token was chosen from
    oracle: tuple[int, ...] | None  # the shortest right rest from here; None if there is none
    instead: Future  # with the runner-up in this token's place, and greedily on
    source: Source | None = None  # where the token was copied from, if that is known

    @property
    def agrees(self) -> bool:
        """The token is the oracle's. (Another one may be as good.)"""
        return self.oracle is not None and self.oracle[0] == self.step.token


def look_at(network: AgentNetwork, task: Task, problems: Any, recorded: Trajectory) -> list[Look]:
    """A look at each step of the episode on the one problem."""
    tokens, steps = recorded.tokens, recorded.steps
    given = np.tile(np.array(tokens), (len(steps), 1))  # (T, T): row t differs at its token t
    np.fill_diagonal(given, [step.runner_up for step in steps])
    given[np.triu_indices_from(given, 1)] = GivenTokens.FREE
    repeated = problems.take(np.zeros(len(steps), np.int64))
    others = play(network, task, repeated, chooser=GivenTokens(given))
    told, answered = endings(task, repeated, others)
    hidden = network.hidden_states(
        problems.context, problems.stage, np.array([tokens]), recorded.response
    )[0]
    copied = sources(
        network,
        task,
        problems,
        np.array([tokens]),
        np.array([len(tokens)]),
        recorded.response,
    )[0]
    return [
        Look(
            number=row + 1,
            step=step,
            hidden=tuple(hidden[row].tolist()),
            oracle=task.continuation(problems, 0, tokens[:row]),
            instead=Future(
                tuple(others.actions[row, : others.lengths[row]].tolist()),
                bool(answered[row]),
                told[row],
                bool(others.solved[row]),
            ),
            source=copied[row],
        )
        for row, step in enumerate(steps)
    ]


def record(look: Look, task: Task) -> dict[str, Any]:
    """A look as a row of a table: `--parquet` and `--json`."""
    step, vocabulary = look.step, task.vocabulary
    return {
        "step": look.number,
        "token": vocabulary.names[step.token],
        "probability": step.probability,
        "probabilities": list(step.probabilities),
        "value": step.value,
        "reward": step.reward,
        "response": [vocabulary.names[token] for token in step.response],
        "copied_from": None if look.source is None else look.source.record(task),
        "registers": dict(step.registers),
        "oracle": None if look.oracle is None else vocabulary.text(look.oracle).split(),
        "runner_up": vocabulary.names[step.runner_up],
        "runner_up_probability": step.runner_up_probability,
        "instead_tokens": vocabulary.text(look.instead.tokens).split(),
        "instead_answer": look.instead.answer,
        "instead_solved": look.instead.solved,
        "hidden": list(look.hidden),
    }


def percentages(step: Step) -> list[str]:
    """The probabilities in whole per cent, rounded down; '.' below one."""
    return [str(int(100 * share)) if share >= 0.01 else "." for share in step.probabilities]
