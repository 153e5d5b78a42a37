"""Plays B whole episodes at once: the machine in NumPy, the network in torch, no Python per step
of an episode. This is the only rollout loop: whoever plays episodes calls `play`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.rollouts.explorers import Explorers, ExplorersStep
from toolagent.rollouts.live_states import LiveStates
from toolagent.tasks import Task, Transition


@dataclass
class PlayTimes:
    """Where the seconds of `play` went."""

    inference_s: float = 0.0  # network and sampling
    machine_s: float = 0.0  # everything else: transitions, columns, leaving the batch


@dataclass(frozen=True)
class PlayedStep:
    """One action in each of n live episodes, and what it was chosen from."""

    task: Task
    number: int  # 0 is the first
    rows: np.ndarray  # (n,) the episodes' places in the batch
    logits: torch.Tensor  # (n, A)
    values: torch.Tensor  # (n,) of the value head, before the action
    actions: np.ndarray  # (n,) tokens
    problems: Any  # n problems of the task
    before: Any  # the task's registers before the action
    transition: Transition  # what the action did, with the registers after it

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 what was answered, and (n,) bool where it did."""
        values, filled = self.task.accumulator(self.transition.registers)
        return values, self.transition.terminated & filled


class Observer(Protocol):
    """Sees every step of `play`."""

    def observe(self, step: PlayedStep) -> None:
        """Called after each step of the machine; the arrays are not to be changed."""


class Chooser(Protocol):
    """Chooses actions in place of the most probable token."""

    def tokens(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """What n episodes do at a step.

        Args:
            logits: (n, A) of the policy.
            step: 0 is the first.
            rows: (n,) int64, which of the chooser's episodes they are.

        Returns:
            (n,) int64 tokens.
        """
        ...


class Intervention(Protocol):
    """Replaces what the network observes or remembers in n live episodes before a step.

    The machine goes on with its own registers. A subclass overrides what it replaces.
    """

    def response(self, response: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """What is observed of the answer to the action before; the batch holds it, too.

        Called where tools answer.

        Args:
            response: (n, R) integers, not to be changed.
            step: 0 is the first, at which nothing has been answered.
            rows: (n,) int64, the episodes' places in the batch.

        Returns:
            (n, R) integers.
        """
        return response

    def hidden(self, hidden: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """The state that the step goes on from.

        Args:
            hidden: (n, S), not to be changed.
            step: 0 is the first.
            rows: (n,) int64, the episodes' places in the batch.

        Returns:
            (n, S).
        """
        return hidden


class GivenTokens:
    """Episodes that take given tokens where there are any, and the most probable one elsewhere.

    Args:
        given: (B, F) tokens for the first F steps; `FREE` where the policy chooses.
    """

    FREE = -1

    def __init__(self, given: np.ndarray):
        self._given = torch.from_numpy(given.astype(np.int64))

    def tokens(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """(n,) tokens (see `Chooser`)."""
        token = logits.argmax(1)
        if step >= self._given.shape[1]:
            return token
        given = self._given[rows, step]
        return torch.where(given == self.FREE, token, given)


@dataclass
class PlayDetails:
    """Columns that are recorded and not learned from: an `Observer` that fills them."""

    values: np.ndarray  # (B, T) float32: the value head's before each action, 0 after the end
    answers: np.ndarray  # (B,) int64: what was answered, 0 where there was no answer
    answered: np.ndarray  # (B,) bool: there was one
    unseen: dict[str, np.ndarray]  # B rows each: of the problems, what `Task.unseen` tells

    @classmethod
    def empty(cls, episodes: int, max_actions: int) -> PlayDetails:
        """For so many episodes, to be filled."""
        return cls(
            np.zeros((episodes, max_actions), np.float32),
            np.zeros(episodes, np.int64),
            np.zeros(episodes, bool),
            {},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[PlayDetails]) -> PlayDetails:
        """The rows of all parts, in order."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.answers for part in parts]),
            np.concatenate([part.answered for part in parts]),
            {
                name: np.concatenate([part.unseen[name] for part in parts])
                for name in parts[0].unseen
            },
        )

    def take(self, rows: np.ndarray) -> PlayDetails:
        """The rows at the given indices, or under a boolean mask."""
        return PlayDetails(
            self.values[rows],
            self.answers[rows],
            self.answered[rows],
            {name: column[rows] for name, column in self.unseen.items()},
        )

    def observe(self, step: PlayedStep) -> None:
        """Notes values, answers and what is not seen (see `Observer`)."""
        if step.number == 0:  # all episodes are live
            self.unseen = step.task.unseen(step.problems)
        self.values[step.rows, step.number] = step.values.numpy()
        if step.transition.terminated.any():
            answers, answered = step.answers()
            rows = step.rows[answered]
            self.answers[rows], self.answered[rows] = answers[answered], True


@torch.no_grad()
def play(
    network: AgentNetwork,
    task: Task,
    problems: Any,
    generator: torch.Generator | None = None,
    *,
    random_actions: bool = False,
    explorers: Explorers | None = None,
    chooser: Chooser | None = None,
    times: PlayTimes | None = None,
    observer: Observer | None = None,
    intervention: Intervention | None = None,
) -> EpisodeBatch:
    """One episode of each problem, from start to end.

    An episode that is over leaves the batch, so it costs nothing from then on.

    Args:
        network: on the CPU; it reads contexts, stages and its own tokens, never a register.
        task: the machine.
        problems: (B,) problems of that task.
        generator: the stream that actions are drawn from; None plays greedily (the most
            probable token; of equals, the one with the lowest number).
        random_actions: draw tokens evenly, not from the policy; needs a generator.
        explorers: the last few episodes are played by them, not by the policy; needs a generator.
        chooser: chooses all tokens in place of the most probable ones; needs `generator` None.
        times: seconds are added to it.
        observer: is shown every step.
        intervention: replaces what is observed or remembered before each step.

    Returns:
        The B episodes in the order of `problems`.
    """
    batch = empty_batch(task, problems.context, problems.stage)
    exploring = 0 if explorers is None or generator is None else len(explorers)
    first_explorer = len(problems) - exploring
    if exploring:
        batch.explored[-exploring:] = True
    registers = task.start(problems)
    live = np.arange(len(problems))  # the rows of `batch` that are still playing
    answered = task.no_response(len(live))
    states = LiveStates(
        *(network, problems.context, problems.stage, task.vocabulary.start_token, answered),
        share=intervention is None,
    )
    clock = time.perf_counter
    inference_s, started = 0.0, clock()
    for step in range(task.max_actions):
        mark = clock()
        if intervention is not None:
            places = torch.from_numpy(live)
            states.hidden = intervention.hidden(states.hidden, step, places)
            if states.response is not None:
                states.response = intervention.response(states.response, step, places)
                if step:
                    batch.response[live, step - 1] = states.response.numpy()
        logits, values = states.step()
        if generator is None:
            if chooser is None:
                token = logits.argmax(1)
            else:
                token = chooser.tokens(logits, step, torch.from_numpy(live))
            log_probability = None
        else:
            log_probabilities = torch.log_softmax(
                torch.zeros_like(logits) if random_actions else logits, 1
            )
            drawn_by = log_probabilities
            if exploring:
                # Explorers are the last rows; who leaves the batch changes nothing in the order.
                theirs = slice(len(live) - exploring, None)
                chosen = explorers.log_probabilities(
                    ExplorersStep(
                        task,
                        step,
                        live[theirs] - first_explorer,
                        logits[theirs],
                        registers.take(theirs),
                        None if answered is None else answered[theirs],
                    )
                )
                drawn_by = torch.cat([log_probabilities[:-exploring], chosen])
            token = sample_tokens(drawn_by, generator)
            log_probability = log_probabilities.gather(1, token[:, None]).squeeze(1)
        actions = token.numpy()
        inference_s += clock() - mark
        transition = task.step(problems, registers, actions)
        done = transition.done
        # While all are live, a slice writes the column in place of a gather by index.
        rows: Any = slice(None) if len(live) == len(batch) else live
        batch.actions[rows, step] = actions
        batch.rewards[rows, step] = transition.rewards
        batch.status[rows, step] = task.status(transition.registers)
        batch.solved[rows] = transition.solved
        if (answered := task.response_of(transition)) is not None:
            batch.response[rows, step] = answered
        if log_probability is not None:
            batch.log_probabilities[rows, step] = log_probability.numpy()
        if observer is not None:
            observer.observe(
                PlayedStep(
                    task, step, live, logits, values, actions, problems, registers, transition
                )
            )
        registers = transition.registers
        going = np.flatnonzero(~done)
        if not len(going):
            batch.lengths[live] = step + 1
            break
        states.go_on(token, answered, going)
        if len(going) < len(live):
            batch.lengths[live[done]] = step + 1
            live, registers, problems = live[going], registers.take(going), problems.take(going)
            answered = None if answered is None else answered[going]
            if exploring:
                exploring = int(np.count_nonzero(batch.explored[live]))
    if times is not None:
        times.inference_s += inference_s
        times.machine_s += clock() - started - inference_s
    return batch


def sample_tokens(log_probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B,) tokens drawn from (B, A) log-probabilities.

    argmax(log p - log e) with e from Exp(1) is the Gumbel-max trick, -log e being a standard
    Gumbel variable (Gumbel 1954; Maddison et al. 2014, "A* sampling"): one pass, no cumulative
    sums.
    """
    noise = torch.empty_like(log_probabilities).exponential_(generator=generator).log_()
    return (log_probabilities - noise).argmax(1)
