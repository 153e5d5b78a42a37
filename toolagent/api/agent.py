"""`toolagent.load_agent`: a trained agent that plays problems, and acts in Gymnasium environments.

Shapes: N environments, L context tokens, R tokens of a response.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toolagent.api.policies import TaskLike, policy_at
from toolagent.checkpoints.policy import Policy
from toolagent.errors import UserError
from toolagent.models.base import Encoding, as_responses
from toolagent.rollouts.play import sample_tokens
from toolagent.rollouts.trajectory import Trajectory, one_line, trajectory
from toolagent.tasks import Task
from toolagent.tasks.posing import pose_one


@dataclass(frozen=True)
class EpisodeStep:
    """One action of an episode, and what it did."""

    token: str  # the action's name
    probability: float  # that the agent gave it
    value: float  # the critic's estimate of the reward to come, before the action
    registers: dict[str, int | str | None]  # by name, after the action; None where empty
    reward: float
    response: tuple[str, ...]  # the names of the tokens that the tool answered with


@dataclass(frozen=True)
class Episode:
    """A greedy episode. `print(episode)` shows it on one line."""

    problem: str  # '3*4+5'
    stage: int
    target: int  # the right answer
    tokens: tuple[str, ...]  # the names of the actions
    answer: int | None  # None: no answer, an empty one, or a task without an `accumulator`
    solved: bool  # the answer is exactly right
    steps: tuple[EpisodeStep, ...] = field(repr=False)
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class AgentState:
    """What an agent remembers between two calls of `Agent.act`; it is never changed in place."""

    encoding: Encoding  # each (N, ...): of the problems that it has read
    hidden: torch.Tensor  # (N, S)
    context: np.ndarray  # (N, L) the problems
    stage: np.ndarray  # (N,)
    steps: np.ndarray  # (N,) actions chosen in the episode
    # (N,) the last ones; -1 where the observation was an episode's last
    action: np.ndarray
    ends: np.ndarray  # (N,) bool: that action ends the episode


class Agent:
    """A trained agent. Neither Ray nor a GPU is used.

    Args:
        policy: of a checkpoint.
        seed: of the actions that `act` samples; None: another sequence each time.
    """

    def __init__(self, policy: Policy, seed: int | None = None):
        self.policy = policy
        self.task: Task = policy.task
        self._network = policy.network
        self._table = policy.network.step_table()
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __repr__(self) -> str:
        return f"Agent(task={self.task.name!r}, checkpoint={self.policy.place!r})"

    # Whole episodes -----------------------------------------------------------------------

    def play(self, *, stage: int | None = None, **problem: Any) -> Episode:
        """Plays one problem greedily.

        Args:
            stage: of the problem. Default: what the problem tells, or the task's last stage.
            problem: as `reset(options=...)` of the environment takes it: `digits=[3, 4, 5, 6, 7]`
                (those that the stage does not show may be left out), `expression="(3+4)*2"`,
                `expression="3*B+C-7", database=[19, 3, 86, 8, 1, 48, 2, 2]`.
                None, or a task that can't be given problems: an example that the task draws.

        Raises:
            UserError: no such stage, or not what poses a problem of it.
        """
        try:
            posed = self._posed(stage, problem)
        except (ValueError, TypeError) as error:
            raise UserError(f"play: {error}") from error
        with torch.no_grad():
            return self._episode(trajectory(self._network, self.task, posed))

    def _posed(self, stage: int | None, problem: dict[str, Any]) -> Any:
        task = self.task
        if stage is not None:
            task.check_stage(stage)
        if not problem:
            return task.example(stage)
        if stage is None and not task.problem_tells_stage:
            stage = task.stages[-1]
        return pose_one(task, stage, problem)

    def _episode(self, played: Trajectory) -> Episode:
        names = played.vocabulary.names
        steps = tuple(
            EpisodeStep(
                token=names[step.token],
                probability=step.probability,
                value=step.value,
                registers=dict(step.registers),
                reward=step.reward,
                response=tuple(names[token] for token in response),
            )
            for step, response in zip(played.steps, played.response[0], strict=True)
        )
        return Episode(
            problem=played.problem,
            stage=played.stage,
            target=played.target,
            tokens=tuple(step.token for step in steps),
            answer=played.answer,
            solved=played.solved,
            steps=steps,
            text=one_line(played),
        )

    # One action at a time -----------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Any],
        state: AgentState | None = None,
        greedy: bool = True,
    ) -> tuple[Any, AgentState]:
        """The next action in one environment or in N of a vector environment.

            state = None
            while True:
                actions, state = agent.act(observation, state)
                observation, rewards, terminated, truncated, info = envs.step(actions)

        The agent's memory is `state`. Take each returned action, or the memory is of another
        episode than the one that is played.

        A row begins anew where its episode has ended: the action that was returned was the task's
        `answer` (if that ends it) or the last one of its `action_limit`, or `previous_token` is
        `start` again. Under NEXT_STEP autoreset (the native vector environment's) the action on an
        episode's last observation is ignored by the environment, so any is returned. Where `start`
        is an action too, as `CTX` is, an agent that wrote it goes on as long as context and stage
        stay what they were. So one thing can't be noticed: that an episode whose last action was
        `start` was cut off from outside (or, under NEXT_STEP, ran out of actions) and is followed
        by one on the same problem. Give None then.

        Args:
            observation: of the task's Gymnasium environment: `context` (L,), `stage`,
                `previous_token`, and `response` (R,) where the tools answer; of a vector
                environment with N in front.
            state: what the call before returned; None: all rows are at the beginning.
            greedy: the most probable action; else one drawn from the agent's distribution.

        Returns:
            The action, an int or (N,) int64, and the state for the next call.

        Raises:
            ValueError: no observation of the task; one in the middle of an episode without a
                state; or the state is of other environments.
        """
        single, (context, stage, previous, response) = self._columns(observation)
        start = self.task.vocabulary.start_token
        if state is None:
            if (previous != start).any():
                raise ValueError(
                    "the episode has begun already; give the state that act returned for the "
                    "observation before"
                )
            fresh, last = np.ones(len(stage), bool), np.zeros(len(stage), bool)
        else:
            if len(state.stage) != len(stage):
                raise ValueError(
                    f"the state is of {len(state.stage)} environments, the observation of "
                    f"{len(stage)}"
                )
            moved = (context != state.context).any(1) | (stage != state.stage)
            # An episode's last observation; the next one is a beginning, whatever it shows.
            last = state.ends & (previous != start)
            fresh = state.ends | ((previous == start) & ((state.action != start) | moved))
            if (moved & ~fresh).any():
                raise ValueError(
                    "the state is of another problem; give None when you reset an environment"
                )
        # Of a last observation nothing is read: a network may have no place for one action more.
        encoding, hidden = self._memory(context, stage, fresh, state)
        token = torch.from_numpy(np.where(fresh, start, previous))
        answered = as_responses(np.where(fresh[:, None], self.task.vocabulary.pad_token, response))
        logits, _, hidden = self._network.step(self._table, token, encoding, hidden, answered)
        if greedy:
            chosen = logits.argmax(1)
        else:
            chosen = sample_tokens(torch.log_softmax(logits, 1), self._generator)
        action = chosen.numpy()
        steps = np.where(fresh, 0, 0 if state is None else state.steps) + 1
        ends = steps >= self.task.action_limit(stage)
        if self.task.answer_ends:
            ends = ends | (action == self.task.vocabulary.answer_token)
        after = AgentState(
            encoding=encoding,
            hidden=hidden,
            context=context,
            stage=stage,
            steps=steps,
            action=np.where(last, -1, action),
            ends=ends & ~last,
        )
        return (int(action[0]) if single else action), after

    def _columns(
        self, observation: Mapping[str, Any]
    ) -> tuple[bool, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Whether it is of a single environment; and checked copies: (N, L) contexts, (N,) stages,
        (N,) previous tokens, (N, R) responses."""
        task, vocabulary = self.task, self.task.vocabulary
        widths = {"context": (task.context_length,), "stage": (), "previous_token": ()}
        limits = {"context": len(vocabulary), "stage": task.stages.stop}
        limits |= {"previous_token": vocabulary.num_previous_tokens, "response": len(vocabulary)}
        if task.response_length:
            widths["response"] = (task.response_length,)
        if not isinstance(observation, Mapping) or not widths.keys() <= observation.keys():
            raise ValueError(
                f"expected an observation of task '{task.name}', a dictionary with "
                f"{', '.join(widths)}; got {reprlib.repr(observation)}"
            )
        single = np.ndim(observation["stage"]) == 0
        size = 1 if single else len(observation["stage"])
        columns = {}
        for name, width in widths.items():
            column = np.array(observation[name])
            expected = width if single else (size, *width)
            if column.shape != expected or column.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} is {column.dtype} of shape {column.shape}; expected integers of "
                    f"shape {expected}"
                )
            if ((column < 0) | (column >= limits[name])).any():
                raise ValueError(f"{name} has a value outside 0..{limits[name] - 1}")
            columns[name] = column.astype(np.int64).reshape(size, *width)
        none = np.zeros((size, 0), np.int64)
        response = columns.get("response", none)
        return single, (columns["context"], columns["stage"], columns["previous_token"], response)

    def _memory(
        self,
        context: np.ndarray,
        stage: np.ndarray,
        fresh: np.ndarray,
        state: AgentState | None,
    ) -> tuple[Encoding, torch.Tensor]:
        """The state's, with the problems of the fresh rows read."""
        if state is not None and not fresh.any():
            return state.encoding, state.hidden
        # All of them: how wide an encoding is may depend on the longest context beside it.
        encoding, hidden = self._network.begin(torch.from_numpy(context), torch.from_numpy(stage))
        if state is None:
            return encoding, hidden
        return encoding, torch.where(torch.from_numpy(fresh).unsqueeze(1), hidden, state.hidden)


def load_agent(
    path: str | os.PathLike[str],
    task: TaskLike = None,
    *,
    network: str | None = None,
    seed: int | None = None,
) -> Agent:
    """Loads a trained agent; Ray is not imported.

    Args:
        path: a checkpoint's folder, or a run's folder (then its last checkpoint); also a URI.
        task: of a checkpoint of other people's code: 'my_module:MyTask', or the class. Only what
            is named here, or was given to `register_task`, is imported: a checkpoint can't run
            code.
        network: the same of its network, 'my_module:MyNetwork'.
        seed: of the actions that `Agent.act` samples.

    Raises:
        UserError: there is no sound checkpoint, or it needs code that was not named.
    """
    return Agent(policy_at(path, task, network), seed)
