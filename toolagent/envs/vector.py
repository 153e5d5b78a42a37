"""The native vector environment: N episodes of the same machine in one NumPy transition."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from toolagent.envs.spaces import (
    action_space,
    observation_space,
    observe,
    pose_or_sample,
    start_stage,
)
from toolagent.tasks import get_task
from toolagent.vocabulary import CTX, check_actions


class ToolVectorEnv(VectorEnv):
    """N independent episodes. Spaces, rewards and episode end are those of `ToolEnv`.

    An episode that ended is replaced at the next step (`AutoresetMode.NEXT_STEP`): that step
    ignores its action, gives reward 0 and the first observation of a fresh problem.

    Info: `acc` (N,) int64 with the mask `_acc` where there is one, at every step; `solved` (N,)
    bool with the mask `_solved` where an episode ended.

    Args:
        num_envs: N.
        task: a name of `toolagent.tasks.TASKS`.
        stage: the stage of all episodes, by default the task's first; a curriculum changes it
            with `set_stage`.
        earlier_stage_share: the share of episodes drawn from the stages before `stage`.
        limit_terminates: as in `ToolEnv`.
        stream: integers mixed into every seed. Runners whose `stream` differs share no problem
            stream, even where their seeds coincide: RLlib gives runner i the seed `seed + i`.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int,
        task: str,
        stage: int | None = None,
        earlier_stage_share: float = 0.0,
        limit_terminates: bool = False,
        stream: tuple[int, ...] = (),
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        if not 0.0 <= earlier_stage_share <= 1.0:
            raise ValueError(f"earlier_stage_share is {earlier_stage_share}; it must be in 0..1")
        self.num_envs = num_envs
        self.task = get_task(task)
        self.earlier_stage_share = earlier_stage_share
        self.limit_terminates = limit_terminates
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._stream = tuple(stream)
        self._chosen_stages: np.ndarray | None = None  # (N,) by reset(options=...), else None
        self._ended = np.zeros(num_envs, bool)
        self._problems: Any = None
        self._registers: Any = None
        self.stage = start_stage(self.task, stage)

    def set_stage(self, stage: int) -> None:
        """Episodes that start from now on are of this stage, or (a share) of an earlier one."""
        self.stage = int(self.task.check_stage(stage))

    def fresh_problems(self, count: int, current: int = 0, practice: bool = False) -> Any:
        """The next `count` problems of this environment's stream and stage mix.

        For a batched rollout, which plays whole episodes itself and needs the problems only.

        Args:
            count: how many.
            current: how many of them, the last ones, are of `stage` and not of the mix.
            practice: draw them as the task's `practice` does, not as its `sample`.
        """
        stages = self._draw_stages(count)
        stages[count - current :] = self.stage
        draw = self.task.practice if practice else self.task.sample
        return draw(self.np_random, stages)

    @property
    def stages(self) -> np.ndarray:
        """(N,) int8: the stage of each current episode."""
        return self._problems.stage

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Starts N episodes.

        Args:
            seed: one integer for the whole batch (a list of N is mixed into one).
            options: `stage`, an integer or N of them, which also holds for the episodes that
                follow until the next call; `digits` (N, 5), or `expression`, N texts, the problems
                of the first episodes. An expression's stage follows from it.

        Raises:
            ValueError: an option that is unknown or out of range, or a stage that is not the
                expression's.
        """
        if seed is not None:
            entropy = [seed] if isinstance(seed, (int, np.integer)) else [s or 0 for s in seed]
            self._np_random = np.random.default_rng(
                np.random.SeedSequence([*(int(s) for s in entropy), *self._stream])
            )
        options = options or {}
        chosen = self._chosen(options)
        stages = self._draw_stages(self.num_envs) if chosen is None else chosen
        self._problems = pose_or_sample(self.task, self.np_random, stages, options)
        self._chosen_stages = chosen
        self._registers = self.task.start(self._problems)
        self._previous = np.full(self.num_envs, CTX, np.int8)
        self._ended = np.zeros(self.num_envs, bool)
        return observe(self._problems, self._previous), self._info()

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        if self._registers is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = check_actions(actions, (self.num_envs,))
        transition = self.task.step(self._problems, self._registers, actions)
        self._registers = transition.registers
        self._previous = actions.astype(np.int8)
        rewards, done = transition.rewards, transition.done
        terminated, truncated = transition.terminated, transition.truncated
        if self.limit_terminates:
            terminated, truncated = terminated | truncated, np.zeros_like(truncated)
        if self._ended.any():
            restarted = np.flatnonzero(self._ended)
            rewards[restarted] = 0.0
            for flags in (terminated, truncated, done):
                flags[restarted] = False
            fresh = self.task.sample(self.np_random, self._next_stages(restarted))
            self._problems.put(restarted, fresh)
            self._registers.put(restarted, self.task.start(fresh))
            self._previous[restarted] = CTX
        info = self._info()
        if done.any():
            info["solved"], info["_solved"] = transition.solved & done, done
        self._ended = done
        return observe(self._problems, self._previous), rewards, terminated, truncated, info

    def _chosen(self, options: dict[str, Any]) -> np.ndarray | None:
        """(N,) the stages that the options of `reset` choose, None if they choose none."""
        if "stage" not in options:
            return None
        chosen = self.task.check_stage(options["stage"])
        if chosen.shape not in ((), (self.num_envs,)):
            raise ValueError(
                f"stage has shape {chosen.shape}; expected one integer or {self.num_envs}"
            )
        return np.broadcast_to(chosen, (self.num_envs,))

    def _next_stages(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) the stages of the episodes that start there."""
        if self._chosen_stages is not None:
            return self._chosen_stages[rows]
        return self._draw_stages(len(rows))

    def _draw_stages(self, count: int) -> np.ndarray:
        return draw_stages(
            self.np_random, count, self.stage, self.earlier_stage_share, self.task.first_stage
        )

    def _info(self) -> dict[str, np.ndarray]:
        value, filled = self.task.accumulator(self._registers)
        return {"acc": value, "_acc": filled}


def draw_stages(
    rng: np.random.Generator,
    size: int,
    stage: int,
    earlier_stage_share: float,
    first_stage: int = 0,
) -> np.ndarray:
    """(size,) int8: `stage`, but for a share drawn evenly from those from `first_stage` to it."""
    stages = np.full(size, stage, np.int8)
    if stage > first_stage and earlier_stage_share > 0:
        earlier = rng.random(size) < earlier_stage_share
        stages[earlier] = rng.integers(first_stage, stage, size=int(earlier.sum()), dtype=np.int8)
    return stages
