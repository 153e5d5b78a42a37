"""The native vector environment: N episodes of the same machine in one NumPy transition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

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

# What `get_attr` reads of the N environments, and where it is here.
_ATTRIBUTES = {
    name: name
    for name in (
        *("limit_terminates", "metadata", "np_random", "np_random_seed", "render_mode"),
        *("spec", "stage", "task"),
    )
} | {"action_space": "single_action_space", "observation_space": "single_observation_space"}


class ToolVectorEnv(VectorEnv):
    """N independent episodes. Spaces, rewards and episode end are those of `ToolEnv`.

    An episode that ended is replaced at the next step (`AutoresetMode.NEXT_STEP`): that step
    ignores its action, gives reward 0 and the first observation of a fresh problem.

    Info: `acc` (N,) int64 with the mask `_acc` where there is one, at every step; at the start of
    episodes, by its name, what problems have and the agent does not observe; `solved` (N,)
    bool with the mask `_solved` where an episode ended.

    Problems come from one random stream, `np_random`, unless `reset` is given a list of seeds:
    then every environment draws from its own, the same problems as in a `SyncVectorEnv` of
    `ToolEnv`s. That takes a call for each episode and is much slower.

    `call`, `get_attr` and `set_attr` are those of `SyncVectorEnv`, as if there were N `ToolEnv`s.

    Args:
        num_envs: N.
        task: its name, or 'module:Class'.
        stage: the stage of all episodes, by default the task's first; a curriculum changes it
            with `set_stage`.
        earlier_stage_share: the share of episodes drawn from the stages before `stage`.
        limit_terminates: as in `ToolEnv`.
        stream: integers mixed into every seed. Runners whose `stream` differs share no problem
            stream, even where their seeds coincide: RLlib gives runner i the seed `seed + i`.
        render_mode: None; there is nothing to render.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        task: str,
        stage: int | None = None,
        earlier_stage_share: float = 0.0,
        limit_terminates: bool = False,
        stream: tuple[int, ...] = (),
        render_mode: str | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        check_render_mode(render_mode)
        self.num_envs = num_envs
        self.task = get_task(task)
        self.earlier_stage_share = earlier_stage_share
        self.earlier_stage_weights = None
        self.limit_terminates = limit_terminates
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = action_space(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._stream = tuple(stream)
        # By row: the stream and the seed of each environment that was given its own.
        self._own_streams: dict[int, tuple[np.random.Generator, int]] = {}
        self._ended = np.zeros(num_envs, bool)
        self._previous = np.full(num_envs, self.task.vocabulary.start_token, np.int8)
        self._response = self.task.no_response(num_envs)
        self._problems: Any = None
        self._registers: Any = None
        self.stage = self.task.first_stage if stage is None else stage

    @property
    def stage(self) -> int:
        """The stage of the episodes to come. Setting it raises ValueError for any other value."""
        return self._stage

    @stage.setter
    def stage(self, stage: int) -> None:
        self._stage = check_one_stage(self.task, stage)
        self._own_stages: np.ndarray | None = None  # (N,) int8 by `set_attr`, else None
        # (N,) int8: the stages of the next episodes, -1 where `stage` and the share say; None for
        # -1 everywhere.
        self._fixed_stages: np.ndarray | None = None

    def set_stage(self, stage: int) -> None:
        """Episodes that start from now on are of this stage, or (a share) of an earlier one."""
        self.stage = stage

    @property
    def earlier_stage_share(self) -> float:
        """In 0..1. Setting it raises ValueError for any other value."""
        return self._earlier_stage_share

    @earlier_stage_share.setter
    def earlier_stage_share(self, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"earlier_stage_share is {share}; it must be in 0..1")
        self._earlier_stage_share = share

    @property
    def earlier_stage_weights(self) -> np.ndarray | None:
        """(num_stages,) float: how often an earlier stage is drawn, relative to the others; None
        for evenly. Setting it raises ValueError for any other shape, or for negative numbers."""
        return self._earlier_stage_weights

    @earlier_stage_weights.setter
    def earlier_stage_weights(self, weights: np.ndarray | None) -> None:
        if weights is not None and (len(weights) != self.task.num_stages or min(weights) < 0):
            raise ValueError(
                f"earlier_stage_weights is {weights}; expected {self.task.num_stages} numbers that "
                "are not negative"
            )
        self._earlier_stage_weights = weights

    @property
    def np_random(self) -> np.random.Generator:
        """The stream of all environments that were not given their own. Setting it is for all."""
        return super().np_random

    @np_random.setter
    def np_random(self, stream: np.random.Generator) -> None:
        self._np_random, self._np_random_seed, self._own_streams = stream, -1, {}

    @property
    def np_random_seed(self) -> Any:
        """The seed of `np_random`; a tuple of N if an environment was given its own.

        -1 for a stream that was set and not seeded.
        """
        seed = super().np_random_seed
        if not self._own_streams:
            return seed
        return tuple(self._own_streams.get(row, (None, seed))[1] for row in range(self.num_envs))

    def fresh_problems(self, count: int, current: int = 0, practice: bool = False) -> Any:
        """The next `count` problems of this environment's stream and stage mix.

        For a batched rollout, which plays whole episodes itself and needs the problems only.

        Args:
            count: how many.
            current: how many of them, the last ones, are of `stage` and not of the mix.
            practice: draw them as the task's `practice` does, not as its `sample`.
        """
        stages = self._draw_stages(self.np_random, count)
        stages[count - current :] = self.stage
        draw = self.task.practice if practice else self.task.sample
        return draw(self.np_random, stages)

    @property
    def stages(self) -> np.ndarray:
        """(N,) int8: the stage of each current episode."""
        return self._problems.stage

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Starts N episodes, or those under `reset_mask`.

        Args:
            seed: one integer for the stream of the whole batch; or N, one for each environment's
                own stream, where None leaves an environment's stream as it is. With a
                `reset_mask`, the integer s is short for s, s + 1, ..., s + N - 1, and only the
                seeds under the mask count.
            options: `stage`, an integer or N of them, which also holds for the episodes that
                follow until the next call; by the names that the task is posed by, N values each,
                the problems of the first episodes: `digits` (N, 5), or `expression`, N texts, from
                which the stages follow. `reset_mask`, (N,)
                bool: which episodes to start; the others go on as if there had been no call.

        Raises:
            ValueError: an option that is unknown or out of range, or a stage that is not the
                expression's; more or fewer than N seeds.
            gymnasium.error.Error: a seed that is not a non-negative integer.
            gymnasium.error.ResetNeeded: a mask in the first call.
        """
        options = dict(options or {})
        seeds_rows = "reset_mask" in options
        mask = self._check_mask(options.pop("reset_mask", None))
        chosen = self._check_stages(options)
        streams = self._check_seeds(seed, mask, seeds_rows)
        rows = np.flatnonzero(mask)
        if isinstance(streams, dict):
            self._own_streams |= streams
        else:
            (self._np_random, self._np_random_seed), self._own_streams = streams, {}
        fixed = self._fixed_from(chosen, mask)
        if self._registers is not None:  # earlier infos may hold its columns
            self._registers = self._registers.take(np.arange(self.num_envs))
        self._start(rows, fixed, options)
        self._fixed_stages = fixed
        self._ended = self._ended & ~mask
        info = self._info()
        info["acc"] = np.where(mask, info["acc"], 0)
        info["_acc"] = info["_acc"] & mask
        info |= self._unseen(mask)
        return observe(self._problems, self._previous, self._response), info

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        if self._registers is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = self.task.vocabulary.check_actions(actions, (self.num_envs,))
        transition = self.task.step(self._problems, self._registers, actions)
        self._registers = transition.registers
        self._previous = actions.astype(np.int8)
        self._response = self.task.response_of(transition)
        rewards = transition.rewards.astype(np.float64, copy=False)
        done = transition.done
        terminated, truncated = transition.terminated, transition.truncated
        if self.limit_terminates:
            terminated, truncated = terminated | truncated, np.zeros_like(truncated)
        if self._ended.any():
            restarted = np.flatnonzero(self._ended)
            rewards[restarted] = 0.0
            for flags in (terminated, truncated, done):
                flags[restarted] = False
            self._start(restarted, self._fixed_stages, {})
        info = self._info()
        if self._ended.any():
            info |= self._unseen(self._ended)
        if done.any():
            info["solved"], info["_solved"] = transition.solved & done, done
        self._ended = done
        return (
            observe(self._problems, self._previous, self._response),
            rewards,
            terminated,
            truncated,
            info,
        )

    def render(self) -> None:
        """Renders nothing: there is no render mode."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """N results of `set_stage` or `render`, or N values of an attribute.

        Raises:
            AttributeError: a `ToolEnv` has no such attribute, or it can't be had for N at once.
        """
        if name == "set_stage":
            self.set_stage(*args, **kwargs)
        elif name != "render":
            return self.get_attr(name)
        return (None,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each of the N environments: `SyncVectorEnv.get_attr`.

        Raises:
            AttributeError: a `ToolEnv` has no such attribute, or it can't be had for N at once.
        """
        rows = range(self.num_envs)
        if name == "stage" and self._own_stages is not None:
            return tuple(self._own_stages.tolist())
        if name == "np_random":
            shared = self.np_random
            return tuple(self._own_streams.get(row, (shared, 0))[0] for row in rows)
        if name == "np_random_seed" and self._own_streams:
            return self.np_random_seed
        if name not in _ATTRIBUTES:
            raise AttributeError(
                f"the environments have no '{name}' to read or call one by one; there are "
                f"{', '.join(sorted(_ATTRIBUTES))}, and set_stage"
            )
        return (getattr(self, _ATTRIBUTES[name]),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of the N environments: `SyncVectorEnv.set_attr`.

        Args:
            name: `stage`, `limit_terminates` or `np_random`.
            values: a list or tuple of N, or one value for all. A stage of an environment's own is
                that of all its episodes, without a share of earlier ones, until another is set.

        Raises:
            AttributeError: another name.
            ValueError: more or fewer than N values, a stage that is not the task's, or values of
                `limit_terminates` that differ.
        """
        if name not in ("stage", "limit_terminates", "np_random"):
            raise AttributeError(
                f"'{name}' can't be set one by one; stage, limit_terminates and np_random can"
            )
        if not isinstance(values, (list, tuple)):
            setattr(self, name, values)
            return
        if len(values) != self.num_envs:
            raise ValueError(f"{name}: {len(values)} values were given; expected {self.num_envs}")
        if name == "stage":
            stages = [check_one_stage(self.task, stage) for stage in values]
            if len(set(stages)) == 1:
                self.stage = stages[0]
            else:
                self._own_stages = self._fixed_stages = np.array(stages, np.int8)
        elif name == "np_random":
            self._own_streams = {row: (stream, -1) for row, stream in enumerate(values)}
        elif len(set(values)) == 1:
            self.limit_terminates = values[0]
        else:
            raise ValueError(f"limit_terminates is one for all environments, not {list(values)}")

    def _start(self, rows: np.ndarray, fixed: np.ndarray | None, options: dict[str, Any]) -> None:
        """Starts episodes in these rows: those of `options`, else fresh ones of `fixed` stages."""
        if options.keys() - {"stage"}:
            every = np.arange(self.num_envs)
            posed = pose(self.task, self._next_stages(self.np_random, every, fixed), options)
            assert posed is not None
            self._put(rows, posed.take(rows))
            return
        groups = [(self.np_random, rows)]
        if self._own_streams:
            own = [int(row) for row in rows if row in self._own_streams]
            groups = [(self._own_streams[row][0], np.array([row])) for row in own]
            if len(own) < len(rows):
                groups.append((self.np_random, np.setdiff1d(rows, own)))
        for stream, group in groups:
            stages = self._next_stages(stream, group, fixed)
            self._put(group, self.task.sample(stream, stages))

    def _put(self, rows: np.ndarray, problems: Any) -> None:
        """Begins an episode of each problem, in its row."""
        registers = self.task.start(problems)
        if self._problems is None:  # rows that are yet to be filled are anything of the right shape
            anything = np.zeros(self.num_envs, np.int64)
            self._problems, self._registers = problems.take(anything), registers.take(anything)
        self._problems.put(rows, problems)
        self._registers.put(rows, registers)
        self._previous[rows] = self.task.vocabulary.start_token
        if self._response is not None:
            self._response[rows] = self.task.vocabulary.pad_token

    def _check_mask(self, given: Any) -> np.ndarray:
        """(N,) bool: the episodes that `reset` starts."""
        if given is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(given)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"reset_mask is {mask.dtype} of shape {mask.shape}; expected bool of "
                f"shape ({self.num_envs},)"
            )
        if not mask.any():
            raise ValueError("reset_mask is False everywhere; it must choose an environment")
        if self._registers is None:
            raise gym.error.ResetNeeded("the first reset() starts all episodes; no reset_mask yet")
        return mask

    def _check_stages(self, options: dict[str, Any]) -> np.ndarray | None:
        """(N,) the stages that the options of `reset` choose, None if they choose none."""
        if "stage" not in options:
            return None
        chosen = self.task.check_stage(options["stage"])
        if chosen.shape not in ((), (self.num_envs,)):
            raise ValueError(
                f"stage has shape {chosen.shape}; expected one integer or {self.num_envs}"
            )
        return np.broadcast_to(chosen, (self.num_envs,))

    def _check_seeds(self, seed: Any, mask: np.ndarray, seeds_rows: bool) -> Any:
        """What the seed of `reset` makes: the batch's stream and seed, or those of some rows.

        Args:
            seed: as in `reset`.
            mask: (N,) bool: the rows that are reset.
            seeds_rows: one integer, too, is for the streams of rows.
        """
        if seed is None:
            return {}
        if np.ndim(seed) == 0:
            if not seeds_rows:
                return problem_stream(seed, self._stream)
            seed = [seed + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(
                f"{len(seed)} seeds were given; expected one integer or {self.num_envs}"
            )
        return {
            int(row): problem_stream(seed[row], self._stream)
            for row in np.flatnonzero(mask)
            if seed[row] is not None
        }

    def _fixed_from(self, chosen: np.ndarray | None, mask: np.ndarray) -> np.ndarray | None:
        """`_fixed_stages` after a `reset` that chose stages (N,) for the rows under `mask`."""
        chosen = self._own_stages if chosen is None else chosen
        if mask.all() or (chosen is None and self._fixed_stages is None):
            return chosen
        none = np.full(self.num_envs, -1, np.int8)
        before = none if self._fixed_stages is None else self._fixed_stages
        return np.where(mask, none if chosen is None else chosen, before)

    def _next_stages(
        self, stream: np.random.Generator, rows: np.ndarray, fixed: np.ndarray | None
    ) -> np.ndarray:
        """(len(rows),) the stages of the episodes that start there, drawn where none is fixed."""
        drawn = self._draw_stages(stream, len(rows))
        return drawn if fixed is None else np.where(fixed[rows] < 0, drawn, fixed[rows])

    def _draw_stages(self, stream: np.random.Generator, count: int) -> np.ndarray:
        return draw_stages(
            stream,
            count,
            self.stage,
            self.earlier_stage_share,
            self.task.first_stage,
            self.earlier_stage_weights,
        )

    def _info(self) -> dict[str, np.ndarray]:
        value, filled = self.task.accumulator(self._registers)
        return {"acc": value, "_acc": filled}

    def _unseen(self, begun: np.ndarray) -> dict[str, np.ndarray]:
        """Of the episodes that begin: what the problems have and the agent does not observe."""
        info = {}
        for name, column in self.task.unseen(self._problems).items():
            info[name], info[f"_{name}"] = column.copy(), begun
        return info


def draw_stages(
    rng: np.random.Generator,
    size: int,
    stage: int,
    earlier_stage_share: float,
    first_stage: int = 0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """(size,) int8: `stage`, but for a share drawn from those from `first_stage` to it.

    Evenly, or by `weights`, a number for each stage of the task; evenly too if all of them are 0.
    """
    stages = np.full(size, stage, np.int8)
    if stage > first_stage and earlier_stage_share > 0:
        earlier = rng.random(size) < earlier_stage_share
        count = int(earlier.sum())
        known = None if weights is None else weights[: stage - first_stage]
        if known is None or not known.any():
            stages[earlier] = rng.integers(first_stage, stage, size=count, dtype=np.int8)
        else:
            stages[earlier] = first_stage + rng.choice(
                len(known), size=count, p=known / known.sum()
            )
    return stages
