"""The batched EnvRunner: plays whole episodes by the hundred and returns them as columns."""

from __future__ import annotations

import toolagent.cluster.rllib_import  # noqa: F401  before all that would import it

# isort: split
import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import (
    COMPONENT_RL_MODULE,
    DEFAULT_AGENT_ID,
    DEFAULT_MODULE_ID,
)
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    EPISODE_DURATION_SEC_MEAN,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    SAMPLE_TIMER,
    WEIGHTS_SEQ_NO,
)

from toolagent.envs.registration import create_for_rllib, task_of_env_id
from toolagent.envs.vector import ToolVectorEnv
from toolagent.models.allocation import tune_allocation
from toolagent.phases import phase, timed
from toolagent.rollouts.draw import ProblemDraw
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.explorers import ExplorerTables
from toolagent.rollouts.play import PlayDetails, PlayTimes, play
from toolagent.rollouts.recorder import EpisodeRecorder, recorder_of

EARLIER_STAGES = "earlier_stage_weights"  # in a state: of the environment
EXPLORERS = "explorers"  # in a state: (share of the episodes, their `ExplorerTables`)


@dataclass
class Fragment:
    """What one `sample_fragment` call returns, by value: Ray objects are lost with their owner."""

    batch: EpisodeBatch
    weights_seq_no: int  # the weights that played it
    env_runner: int  # worker index
    process: int  # 0: the runner's first; otherwise the number of the one that took its place
    request: int  # the number that it was asked for with
    busy_s: float  # time spent in this call
    idle_s: float  # time between the call before and this one
    times: PlayTimes
    metrics: Any  # RLlib's reduced metrics since the fragment before


class BatchedEnvRunner(EnvRunner, Checkpointable):
    """An EnvRunner whose `sample` plays B complete episodes at once (`rollouts.play`).

    Some of them may be explorers' (`Explorers`); the algorithm says how many with the
    weights. Their steps are counted, their returns are not: those are the policy's. The others
    may come in groups that play one problem, some of the problems from those that this runner
    failed before (`ProblemDraw`).

    B is `num_envs_per_env_runner`. Episodes never span two calls, so nothing is left over when
    the weights, the stage or the runner itself change.

    RLlib's callbacks `on_environment_created` and `on_sample_end` are called; the latter's
    `samples` are an `EpisodeBatch`, in place of a list of episodes.

    Problems come from the native vector env's stream and stage mix; the actions from a torch
    stream of the runner's own. Both are seeded by `SeedSequence((seed, worker, evaluation))` and
    are part of `get_state`. A runner that takes a dead one's place would play that one's episodes
    again: it gets streams of its own (`renew_streams`).
    """

    @override(EnvRunner)
    @timed("build the env runner")
    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        # One thread an actor: the matrices are small, and the cores belong to other actors.
        if self.worker_index:
            torch.set_num_threads(1)
        tune_allocation()
        self.spaces = kwargs.get("spaces", {})
        self.env: ToolVectorEnv | None = None
        self.module: Any = None
        self._weights_seq_no = 0
        self._last_return: float | None = None
        self._process = _process_number()
        self._generator = torch.Generator()
        self._explorer_share = 0.0
        self._explorer_tables: ExplorerTables | None = None
        self._draw = ProblemDraw(  # stock algorithms have no such settings
            int(getattr(config, "group_size", 1)),
            float(getattr(config, "failed_problem_share", 0.0)),
            str(getattr(config, "explorer_kind", "trials")),
            float(config.gamma),
            bool(getattr(config, "practice_problems", False)),
        )
        self._callbacks = [make() for make in force_list(config.callbacks_class)]
        self.make_env()
        self.make_module()

    def __repr__(self) -> str:
        """What Ray's dashboard calls this actor: 'env runner 2', 'evaluation env runner 1'."""
        kind = "evaluation env runner" if self.config.in_evaluation else "env runner"
        return f"{kind} {self.worker_index or 0}"

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        """Raises AssertionError where the environment or the module is missing."""
        assert self.env is not None and self.module is not None

    @override(EnvRunner)
    def make_env(self) -> None:
        """(Re)creates the environment and both random streams from the config."""
        settings: dict[str, Any] = dict(self.config.env_config) | {"num_envs": self.num_envs}
        settings.pop("seed", None)
        settings.pop("evaluation", None)
        self.env = create_for_rllib(settings, task_of_env_id(self.config.env))
        self.recorder: EpisodeRecorder | None = recorder_of(self, self.env.task)
        self.renew_streams(self._process)  # else it would play its predecessor's episodes again
        self._call_back("on_environment_created", env=self.env, env_context=settings)

    def renew_streams(self, number: int = 0) -> None:
        """Begins both random streams anew.

        Args:
            number: of the streams among those of this place. 0 are those of the runner that was
                there first; a process that took its place has its own number's, and one that a
                checkpoint knows nothing of those of that checkpoint's number of updates.
        """
        assert self.env is not None
        entropy = None
        if self.config.seed is not None:
            place = (int(self.worker_index or 0), int(bool(self.config.in_evaluation)))
            entropy = (int(self.config.seed), *place, *((number,) if number else ()))
        streams = np.random.SeedSequence(entropy).spawn(2)
        words = [int(word) for word in streams[0].generate_state(4)]
        self.env.np_random = np.random.default_rng(np.random.SeedSequence(words))
        self.env.reset()
        self._generator.manual_seed(int(streams[1].generate_state(1, np.uint64)[0] >> 1))

    @override(EnvRunner)
    def make_module(self) -> None:
        """Builds the RLModule of the config, on the CPU."""
        spec = self.config.get_rl_module_spec(
            env=self.env, spaces=self.get_spaces(), inference_only=True
        )
        self.module = spec.build()

    @property
    def num_envs(self) -> int:
        """Episodes played by one `sample()` call."""
        return int(self.config.num_envs_per_env_runner or 1)

    @override(EnvRunner)
    def sample(
        self,
        *,
        num_episodes: int | None = None,
        num_timesteps: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> EpisodeBatch:
        """Complete episodes of fresh problems.

        Args:
            num_episodes: how many; default `num_envs_per_env_runner`.
            num_timesteps: at least so many env steps instead; episodes are whole all the same.
            explore: draw tokens (True) or play greedily (False); default: the config's.
            random_actions: tokens drawn evenly instead of from the policy.
            force_reset: nothing to do, every call starts afresh.
        """
        if num_timesteps is not None and num_episodes is not None:
            raise ValueError("num_timesteps and num_episodes can't both be given")
        explore = bool(self.config.explore if explore is None else explore)
        if num_timesteps is None:
            batch = self._sample_episodes(num_episodes or self.num_envs, explore, random_actions)
        else:
            batch = self._sample_steps(num_timesteps, explore, random_actions)
        self._call_back("on_sample_end", samples=batch)
        return batch

    def _sample_episodes(self, count: int, explore: bool, random_actions: bool) -> EpisodeBatch:
        """That many episodes at once: played, counted and recorded."""
        assert self.env is not None
        self._times = PlayTimes()
        # Greedy episodes have no need of a second try, nor has a random one of an explorer; and
        # what is played to evaluate is drawn as the stage has it.
        learning = explore and not random_actions and not self.config.in_evaluation
        with phase("draw problems") as drawing:
            drawn = (self._draw if learning else ProblemDraw()).draw(
                self.env, count, self._explorer_share if learning else 0.0, self._explorer_tables
            )
        recording = self.recorder is not None and self.recorder.active
        details = PlayDetails.empty(count, self.env.task.max_actions) if recording else None
        with phase("play") as playing:
            batch = play(
                self.module.network,
                self.env.task,
                drawn.problems,
                self._generator if explore or random_actions else None,
                random_actions=random_actions,
                explorers=drawn.explorers,
                times=self._times,
                observer=details,
            )
            playing.parts = {
                "network and sampling": self._times.inference_s,
                "machine": self._times.machine_s,
            }
        with phase("compare") as comparing:
            if learning:
                self._draw.compare(batch, drawn, self.env.stage)
        with phase("metrics"):
            self._log(batch, drawing.seconds + playing.seconds + comparing.seconds)
        if self.recorder is not None and details is not None:
            with phase("record episodes"):
                self.recorder.add(batch, details, self._weights_seq_no)
        return batch

    def _sample_steps(self, env_steps: int, explore: bool, random_actions: bool) -> EpisodeBatch:
        """Episodes until they make that many steps, never one more than that may take."""
        assert self.env is not None
        batches: list[EpisodeBatch] = []
        while (left := env_steps - sum(batch.env_steps for batch in batches)) > 0:
            count = min(self.num_envs, math.ceil(left / self.env.task.max_actions))
            batches.append(self._sample_episodes(count, explore, random_actions))
        return EpisodeBatch.concatenate(batches)

    def sample_fragment(
        self, state: Any = None, num_episodes: int | None = None, request: int = 0
    ) -> Fragment:
        """`sample()` with the newest weights, in one remote call: what the algorithm asks for.

        Args:
            state: as in `set_state`; None keeps the weights.
            num_episodes: as in `sample`.
            request: comes back with the fragment.
        """
        idle = 0.0 if self._last_return is None else time.perf_counter() - self._last_return
        with phase("play a fragment") as playing:
            if state is not None:
                with phase("set weights"):
                    self.set_state(state)
            batch = self.sample(num_episodes=num_episodes)
            with phase("metrics"):
                metrics = self.get_metrics()
        self._last_return = time.perf_counter()
        return Fragment(
            batch=batch,
            weights_seq_no=self._weights_seq_no,
            env_runner=int(self.worker_index or 0),
            process=self._process,
            request=request,
            busy_s=playing.seconds,
            idle_s=idle,
            times=self._times,
            metrics=metrics,
        )

    def set_stage(self, stage: int) -> None:
        """Episodes that start from now on are of this stage (or a share of earlier ones)."""
        assert self.env is not None
        self.env.set_stage(stage)

    def expect_any_weights(self) -> None:
        """The next weights are taken whatever their number: restored ones are often older."""
        self._weights_seq_no = 0

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        if self.env is None:
            return self.spaces
        single = (self.env.single_observation_space, self.env.single_action_space)
        return {
            INPUT_ENV_SPACES: (self.env.observation_space, self.env.action_space),
            INPUT_ENV_SINGLE_SPACES: single,
            DEFAULT_MODULE_ID: single,
        }

    @override(EnvRunner)
    def get_metrics(self) -> Any:
        """RLlib's metrics since the last call, reduced."""
        return self.metrics.reduce()

    @override(Checkpointable)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        assert self.env is not None
        state = self.get_streams() | {
            "stage": self.env.stage,
            EARLIER_STAGES: self.env.earlier_stage_weights,
        }
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(**kwargs)
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def get_streams(self) -> dict[str, Any]:
        """The part of `get_state` that is this runner's alone: its random streams, its failed
        problems and its count of env steps."""
        assert self.env is not None
        return {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime,
            "worker_index": self.worker_index,
            "problem_stream": self.env.np_random.bit_generator.state,
            "action_stream": self._generator.get_state().numpy(),
            "failed_problems": self._draw.failed.get_state(),
        }

    @override(Checkpointable)
    def set_state(self, state: Any) -> None:
        """Takes over what is in `state`; weights older than the present ones are refused."""
        assert self.env is not None
        if isinstance(state, ray.ObjectRef):
            state = ray.get(state)
        if COMPONENT_RL_MODULE in state:
            weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)  # 0 or missing forces the update
            if weights_seq_no == 0 or self._weights_seq_no < weights_seq_no:
                weights = state[COMPONENT_RL_MODULE]
                if isinstance(weights, ray.ObjectRef):
                    weights = ray.get(weights)
                self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
                if weights_seq_no:
                    self._weights_seq_no = weights_seq_no
        if EXPLORERS in state:
            self._explorer_share, self._explorer_tables = state[EXPLORERS]
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]
        if "stage" in state:
            self.env.set_stage(state["stage"])
        if EARLIER_STAGES in state:
            self.env.earlier_stage_weights = state[EARLIER_STAGES]
        # A state may come from another runner (RLlib brings a recreated one up to date with the
        # local one's): then its random streams are not for this one.
        if "problem_stream" in state and state.get("worker_index") == self.worker_index:
            self.env.np_random.bit_generator.state = state["problem_stream"]
            self._generator.set_state(torch.from_numpy(np.array(state["action_stream"])))
            self._draw.failed.set_state(state["failed_problems"])

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}

    @override(EnvRunner)
    def stop(self) -> None:
        if self.recorder is not None:
            self.recorder.flush()
        if self.env is not None:
            self.env.close()

    def _call_back(self, name: str, **arguments: Any) -> None:
        """RLlib's callbacks for a runner. Those for single episodes have no place here."""
        make_callback(
            name,
            callbacks_objects=self._callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{name}"),
            kwargs={"env_runner": self, "metrics_logger": self.metrics, **arguments},
        )

    def _log(self, batch: EpisodeBatch, seconds: float) -> None:
        """RLlib's metrics under RLlib's names, once a call: whole columns, no episode objects."""
        steps, episodes = batch.env_steps, len(batch)
        policy = ~batch.explored if batch.explored.any() else slice(None)
        returns, lengths = batch.returns[policy], batch.lengths[policy]
        self.num_env_steps_sampled_lifetime += steps
        window = 10  # calls, each of which is a mean over hundreds of episodes
        for key, value in (
            (EPISODE_LEN_MEAN, float(lengths.mean())),
            (EPISODE_RETURN_MEAN, float(returns.mean())),
            (EPISODE_DURATION_SEC_MEAN, seconds),
            (("agent_episode_return_mean", DEFAULT_AGENT_ID), float(returns.mean())),
            (("module_episode_return_mean", DEFAULT_MODULE_ID), float(returns.mean())),
        ):
            self.metrics.log_value(key, value, window=window)
        for key, value, reduce in (
            (EPISODE_LEN_MIN, int(lengths.min()), "min"),
            (EPISODE_LEN_MAX, int(lengths.max()), "max"),
            (EPISODE_RETURN_MIN, float(returns.min()), "min"),
            (EPISODE_RETURN_MAX, float(returns.max()), "max"),
        ):
            self.metrics.log_value(key, value, reduce=reduce, window=window)
        for key, value in (
            (NUM_ENV_STEPS_SAMPLED, steps),
            ((NUM_AGENT_STEPS_SAMPLED, DEFAULT_AGENT_ID), steps),
            ((NUM_MODULE_STEPS_SAMPLED, DEFAULT_MODULE_ID), steps),
            (NUM_EPISODES, episodes),
        ):
            self.metrics.log_value(key, value, reduce="sum")
        for key, value in (
            (NUM_ENV_STEPS_SAMPLED_LIFETIME, steps),
            ((NUM_AGENT_STEPS_SAMPLED_LIFETIME, DEFAULT_AGENT_ID), steps),
            ((NUM_MODULE_STEPS_SAMPLED_LIFETIME, DEFAULT_MODULE_ID), steps),
            (NUM_EPISODES_LIFETIME, episodes),
        ):
            self.metrics.log_value(
                key,
                value,
                reduce="lifetime_sum",
                with_throughput=key == NUM_ENV_STEPS_SAMPLED_LIFETIME,
            )
        self.metrics.log_value(SAMPLE_TIMER, seconds, window=window)
        self.metrics.log_value(WEIGHTS_SEQ_NO, self._weights_seq_no, window=1)
        self._metrics_num_env_steps_sampled.inc(value=steps)


def _process_number() -> int:
    """0, or in a process that Ray started in a dead one's place a random number above."""
    if not ray.is_initialized():
        return 0
    context = ray.get_runtime_context()
    if context.get_actor_id() is None or not context.was_current_actor_reconstructed:
        return 0
    return 1 + secrets.randbits(32)
