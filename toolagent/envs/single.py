"""The Gymnasium environment: one episode of a task's machine."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from toolagent.envs.seeding import problem_stream
from toolagent.envs.spaces import (
    action_space,
    check_one_stage,
    check_render_mode,
    observation_space,
    observe,
    pose,
)
from toolagent.tasks import get_task


class _Result(int):
    """A plain integer in all but its type.

    Gymnasium's own vectorization (`sync`, `async`) makes one array of the N envs' `acc`. If the
    first is an `int`, that array holds integers only, and another env's None raises in it; values
    of any other type are kept as objects.
    """


class ToolEnv(gym.Env):
    """One problem, solved by emitting tool tokens.

    ## Action space
    `Discrete(A)`: the actions of the task's vocabulary, 18 in this package's own. All are legal
    everywhere.

    ## Observation space
    `Dict(context, stage, previous_token)`, all int64: the problem's tokens, the stage and the
    agent's own last token (`start` at the first step). Where the task's tools answer, `response`
    too: the tokens that the last action was answered with. The registers are not observed: what
    the agent did is in its hidden state or nowhere.

    ## Rewards
    The task's (see its machine).

    ## Episode end
    An answer terminates (the vocabulary's `answer`, or what it begins); the task's last allowed
    action truncates.

    ## Info
    `acc` at every step: what would be answered now, or None. `solved` at the end: the answer is
    exactly right. At the start of an episode, by its name, what a problem has and the agent does
    not observe (`Task.unseen`).

    ## Arguments
    `task`: its name, or 'module:Class'. `stage`: the stage of every episode that
    `reset(options=...)` does not choose otherwise; by default the task's first. `limit_terminates`:
    report the last allowed action as termination, not truncation, for learners that would go on
    with the value of the state behind it (RLlib's do): the limit is a rule of the task, nothing
    comes after it. `stream`: integers mixed into every seed, as in `ToolVectorEnv`.
    `render_mode`: None; there is nothing to render.

    ## Version history
    v0: first version.
    """

    def __init__(
        self,
        task: str,
        stage: int | None = None,
        limit_terminates: bool = False,
        stream: tuple[int, ...] = (),
        render_mode: str | None = None,
    ):
        check_render_mode(render_mode)
        # Gymnasium's vectorization writes its autoreset mode into this.
        self.metadata = {"render_modes": []}
        self.task = get_task(task)
        self.limit_terminates = limit_terminates
        self.stage = self.task.first_stage if stage is None else stage
        self.observation_space = observation_space(self.task)
        self.action_space = action_space(self.task)
        self._stream = tuple(stream)
        self._problem: Any = None
        self._registers: Any = None

    @property
    def stage(self) -> int:
        """The stage of the episodes to come. Setting it raises ValueError for any other value."""
        return self._stage

    @stage.setter
    def stage(self, stage: int) -> None:
        self._stage = check_one_stage(self.task, stage)

    def set_stage(self, stage: int) -> None:
        """Episodes that start from now on are of this stage."""
        self.stage = stage

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: of the stream of problems.
            options: `stage`; and the problem itself, by the names that the task is posed by
                (`Task.posed_by`): `digits`; `expression`, from which the stage follows;
                `expression` and `database`.

        Raises:
            ValueError: an option that is unknown or out of range, or a stage that is not the
                expression's.
            gymnasium.error.Error: a seed that is not a non-negative integer.
        """
        if seed is not None:
            self._np_random, self._np_random_seed = problem_stream(seed, self._stream)
        options = options or {}
        stage = np.atleast_1d(self.task.check_stage(options.get("stage", self.stage)))
        posed = pose(self.task, stage, options)
        self._problem = self.task.sample(self.np_random, stage) if posed is None else posed
        self._registers = self.task.start(self._problem)
        start = self.task.vocabulary.start_token
        info = self._info() | {
            name: column[0] for name, column in self.task.unseen(self._problem).items()
        }
        return self._observation(start, self.task.no_response(1)), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self._registers is None:
            raise gym.error.ResetNeeded("call reset() before step(): the episode is over")
        actions = self.task.vocabulary.check_actions(np.atleast_1d(action), (1,))
        transition = self.task.step(self._problem, self._registers, actions)
        self._registers = transition.registers
        info = self._info()
        if transition.done[0]:
            info["solved"] = bool(transition.solved[0])
        observation = self._observation(int(actions[0]), self.task.response_of(transition))
        if transition.done[0]:
            self._registers = None
        terminated, truncated = bool(transition.terminated[0]), bool(transition.truncated[0])
        if self.limit_terminates:
            terminated, truncated = terminated or truncated, False
        return observation, float(transition.rewards[0]), terminated, truncated, info

    def render(self) -> None:
        """Renders nothing: there is no render mode."""

    def _observation(self, previous_token: int, response: np.ndarray | None) -> dict[str, Any]:
        batch = observe(self._problem, np.array([previous_token]), response)
        return {name: column[0] for name, column in batch.items()}

    def _info(self) -> dict[str, Any]:
        value, filled = self.task.accumulator(self._registers)
        return {"acc": _Result(value[0]) if filled[0] else None}
