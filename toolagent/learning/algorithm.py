"""The batched pipeline as an RLlib Algorithm: runners sample while the learner updates."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_LEARNER,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from toolagent.cluster.loopback_learners import LoopbackLearnersMixin
from toolagent.cluster.ray_internals import TemporaryLogFolder
from toolagent.envs.registration import task_of_env_id
from toolagent.figures import PIPELINE
from toolagent.learning.batches import learner_batches, training_data
from toolagent.learning.callback_state import CallbackStateMixin
from toolagent.learning.exploration import Exploration
from toolagent.learning.faults import (
    MOST_SKIPPED_IN_A_ROW,
    LearningFailed,
    check_learners,
)
from toolagent.learning.iteration import IterationMixin
from toolagent.learning.learner import (
    MODULE_STATE,
    SKIPPED_IN_A_ROW,
    SKIPPED_UPDATES,
    EpisodeColumnsLearner,
)
from toolagent.learning.options import OptionsMixin, PipelineOptions
from toolagent.learning.pipeline_figures import PipelineFigures
from toolagent.learning.pipeline_state import (
    DRAIN_S,
    fragment_of,
    fragment_state,
    metrics_of,
    metrics_state,
    restore_runners,
    runner_states,
)
from toolagent.learning.sampling import SamplingAlgorithm
from toolagent.models.rl_module import NetworkModule
from toolagent.phases import phase
from toolagent.rollouts.env_runner import EARLIER_STAGES, EXPLORERS, BatchedEnvRunner
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.tasks import get_task

_CONNECTORS = "episodes are columns from end to end, and no connector sees them"
_NO_RECORDS = "nothing recorded is learned from; use evaluation_interval"
# Attributes of RLlib's own sampling and learning that have no place here, and what there is
# instead: a setting that changes nothing is refused. The option's name is without the underscore.
_NOT_READ = {
    "train_batch_size": "use episodes_per_update",
    "_train_batch_size_per_learner": "use episodes_per_update",
    "rollout_fragment_length": "episodes are played whole; use num_envs_per_env_runner",
    "batch_mode": "episodes are played whole",
    "clip_rewards": "rewards are learned from as the environment gives them",
    "_env_to_module_connector": _CONNECTORS,
    "_module_to_env_connector": _CONNECTORS,
    "_learner_connector": _CONNECTORS,
    "num_aggregator_actors_per_learner": "batches come whole, and there is nothing to aggregate",
    "num_offline_eval_runners": _NO_RECORDS,
    "offline_evaluation_interval": _NO_RECORDS,
}


class ToolAgentConfig(OptionsMixin, LoopbackLearnersMixin, AlgorithmConfig):
    """Settings of `ToolAgent`: AlgorithmConfig's own, and `PipelineOptions` in `training()`."""

    OPTIONS = PipelineOptions

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or ToolAgent)
        self.env_runner_cls = BatchedEnvRunner
        self.num_env_runners = 1
        self.num_envs_per_env_runner = 512
        self.batch_mode = "complete_episodes"
        self.lr = 3e-3
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.gamma = 1.0
        self.num_epochs = 1
        self.minibatch_size = None  # in episodes
        self.min_time_s_per_iteration = 0.0
        # Connector states are all that RLlib would sync by itself, and there are none.
        self._dont_auto_sync_env_runner_states = True
        # RLlib's two looks at every gradient; the learner looks once, at their norm.
        self.torch_skip_nan_gradients = True
        # Of the second phase: an algorithm that goes on from this one's agent, or None.
        self.student: AlgorithmConfig | None = None

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return EpisodeColumnsLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        task = self.env_config.get("task") or task_of_env_id(self.env)
        return RLModuleSpec(module_class=NetworkModule, model_config={"task": task})

    @override(AlgorithmConfig)
    def validate(self) -> None:
        super().validate()
        self._validate_parts()
        config: Any = self  # the options are attributes, declared by their model
        if self.num_envs_per_env_runner % config.group_size:
            raise ValueError(
                f"num_envs_per_env_runner is {self.num_envs_per_env_runner}; it must be a multiple "
                f"of group_size, {config.group_size}"
            )
        if config.explorer_share > 0 and config.explorer_kind == "copies":
            task = get_task(str(self.env_config.get("task") or task_of_env_id(self.env)))
            if not task.defines("dataflow"):
                raise ValueError(
                    f"explorer_kind is 'copies', and task '{task.name}' does not define `dataflow`"
                )
        most = config.episodes_per_update // max(1, self.num_learners or 0)
        if self.minibatch_size is not None and self.minibatch_size > most:
            # RLlib would go round and round in a batch until a minibatch is full.
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}; a learner has {most} episodes in an "
                "update (episodes_per_update)"
            )
        if config.clip_param is None and self.num_epochs > 1:
            raise ValueError(
                "clip_param is None, so data of an older policy can't be corrected; set "
                "num_epochs to 1, or give a clip_param"
            )

    def _validate_parts(self) -> None:
        """Raises ValueError where a part of RLlib's own pipeline is asked for."""
        for name, base in (
            ("env_runner_cls", BatchedEnvRunner),
            ("learner_class", EpisodeColumnsLearner),
        ):
            if not issubclass(getattr(self, name), base):
                raise ValueError(
                    f"{name} is {getattr(self, name).__name__}; it must be a subclass of "
                    f"{base.__module__}:{base.__name__}"
                )
        if self.in_evaluation:  # RLlib sets some of them there
            return
        untouched = type(self)()
        for name, instead in _NOT_READ.items():
            if getattr(self, name) != getattr(untouched, name):
                raise ValueError(f"{name.removeprefix('_')} would change nothing here: {instead}")

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}


class ToolAgent(CallbackStateMixin, TemporaryLogFolder, SamplingAlgorithm):
    """Samples whole episodes in columns (`SamplingAlgorithm`) and learns from them, both at once.

    A dead learner ends `train()` with `LearningFailed` or Ray's own error, now and in every later
    call.

    Attributes:
        updates: gradient steps so far, and as many as make all that is played too old whenever a
            network begins anew.
    """

    _new_weights: dict[str, Any] | None = None  # of the learners, after the latest update

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ToolAgentConfig:
        return ToolAgentConfig()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        self._skipped_in_a_row = 0
        super().setup(config)
        task = self.env_runner_group.local_env_runner.env.task
        self._exploration = Exploration(self.config, task)
        self.publish_weights()

    def begin_anew(self, number: int) -> None:
        """Puts another network in the place of the present one, which has learned nothing yet.

        What the learners' optimizers and the exploration came to belongs to the present one, and
        goes with it; episodes that it has played are too old from now on.

        Args:
            number: of the network in this run; from 2 on. With the seed it decides the weights.
        """
        entropy = (self.config.seed or 0, number - 1)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        self.learner_group.foreach_learner(partial(_begin_anew, seed=seed))
        task = self.env_runner_group.local_env_runner.env.task
        self._exploration = Exploration(self.config, task)
        self._updates += self.config.max_staleness + 1
        self.publish_weights()

    @property
    def updates(self) -> int:
        """See the class."""
        return self._updates

    @override(Algorithm)
    def training_step(self) -> None:
        check_learners(self)
        if self._stage() != self._published_stage:
            with phase("publish weights"):
                self.publish_weights()
        figures = self._figures
        figures.lost_requests += self.lost_at_restore
        self.lost_at_restore = 0
        updates = self.config.updates_per_iteration
        while self.updates_done < updates and self._may_update():
            with phase("next batch") as waited:
                batch = self._next_batch(figures)
            if batch is None:  # the iteration ends early
                break
            last = self.updates_done + 1 == updates
            with phase("update") as learned:
                figures.trained_env_steps += self._update(batch, reduce_metrics=last)
            with phase("publish weights") as published:
                self.publish_weights(self._new_weights)
            figures.wait_s += waited.seconds
            figures.learn_s += learned.seconds
            figures.sync_s += published.seconds
            self.updates_done += 1
        with phase("metrics"):
            if 0 < self.updates_done < updates:
                self._take_learner_metrics()
            if self._runner_metrics:
                self.metrics.aggregate(self._runner_metrics, key=ENV_RUNNER_RESULTS)
            figures.log(self.metrics, PIPELINE)
        self._figures, self._runner_metrics = PipelineFigures(), []
        self._end_updates()
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise LearningFailed(
                f"the gradients of {self._skipped_in_a_row} updates in a row were no finite "
                "numbers; a smaller training.lr may help"
            )

    # Learning -----------------------------------------------------------------------------

    def _update(self, batch: EpisodeBatch, reduce_metrics: bool) -> int:
        """One gradient step; returns the env steps that it learned from."""
        config = self.config
        columns = self._exploration.learner_columns(batch)
        batches = learner_batches(columns, config.num_learners)
        results = self.learner_group.update(
            training_data=training_data(batches, config.num_learners),
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                    (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0
                )
            },
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
            **_equal_steps(config, batches),
            # Reducing RLlib's metrics takes as long as a small update: once an iteration will do.
            _no_metrics_reduce=not reduce_metrics,
            return_state=True,
        )
        self._updates += 1
        self._new_weights = results[0].pop(MODULE_STATE)
        if reduce_metrics:
            self._note_learners(results)
        return sum(part.env_steps() for part in batches)

    @override(IterationMixin)
    def _note_learners(self, results: list[dict[str, Any]]) -> None:
        self._figures.skipped_updates += _of_learner(results, SKIPPED_UPDATES)
        self._skipped_in_a_row = _of_learner(results, SKIPPED_IN_A_ROW)
        super()._note_learners(results)

    @override(IterationMixin)
    def _env_steps_not_counted(self) -> int:
        return self._figures.env_steps

    def publish_weights(self, weights: dict[str, Any] | None = None) -> None:
        """Puts the learner's weights, numbered, into every request from now on.

        They, or a reference to them, travel with each request, so a runner never plays with weights
        older than its request and no separate message can be dropped.

        Args:
            weights: the state of the learner's modules; None: it is asked for it.
        """
        if weights is None:
            weights = self.learner_group.get_state(
                components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
            )[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
        self._published_stage = self._stage()
        state = {
            COMPONENT_RL_MODULE: weights,
            WEIGHTS_SEQ_NO: self._updates + 1,
            EXPLORERS: self._exploration.for_runners(),
            # Ray may have put a new process in a runner's place that nobody told the stage.
            "stage": self._published_stage,
            EARLIER_STAGES: self.env_runner_group.local_env_runner.env.earlier_stage_weights,
        }
        remote = self.env_runner_group.num_remote_env_runners() > 0
        # Ray's object store takes longer than a message: it is for what is sent more than once.
        stored = remote and self._fragments_per_update() > 1
        self._weights = ray.put(state) if stored else state

    def _stage(self) -> int:
        """The curriculum's stage, as its callback set it."""
        return self.env_runner_group.local_env_runner.env.stage

    # Checkpoints --------------------------------------------------------------------------

    @override(Algorithm)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state, and everything else that the course of the run depends on.

        Env runners finish what they were asked for; those episodes are part of the state. What
        does not come within `DRAIN_S` is counted in it instead, as lost to whoever restores it.
        In the middle of an iteration, what it has come to so far is part of the state too.
        """
        if self.updates_done:
            self._take_learner_metrics()
        state = super().get_state(components, not_components=not_components, **kwargs) | {
            "updates": self._updates,
            "exploration": self._exploration.get_state(),
        }
        if self._check_component(PIPELINE, components, not_components):
            state[PIPELINE] = self._pipeline_state()
        return state

    def _drain(self) -> None:
        """Takes in what is under way, as far as it comes in time."""
        deadline, lost = time.perf_counter() + DRAIN_S, self._figures.lost_requests
        while len(self.requests) and time.perf_counter() < deadline:
            self._fetch(self._figures)
        # Of runners that died just now.
        self.lost_at_restore += self._figures.lost_requests - lost
        self._figures.lost_requests = lost

    def _pipeline_state(self) -> dict[str, Any]:
        self._drain()
        group = self.env_runner_group
        quiet = [
            runner for runner in group.healthy_env_runner_ids() if not self.requests.of(runner)
        ]
        return {
            "fragments": [fragment_state(fragment) for fragment in self._fragments],
            "env_runners": runner_states(group, quiet),
            "next_runner": self._next_runner,
            "lost_requests": self.lost_at_restore + len(self.requests),
            "iteration": {
                "updates_done": self.updates_done,
                "figures": asdict(self._figures),
                "metrics": [metrics_state(metrics) for metrics in self._runner_metrics],
            },
        }

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if COMPONENT_ENV_RUNNER in state:  # RLlib has set its count of env steps to the old total
            self.env_runner_group.local_env_runner.set_state(state[COMPONENT_ENV_RUNNER])
        if "updates" in state:
            self._updates = state["updates"]
            self._exploration.set_state(state["exploration"])
            self._drain()
            self._fragments.clear()  # played with the weights before
            self._end_updates()
            self._figures, self._runner_metrics = PipelineFigures(), []
            # (By name, RLlib would not reach the local one.)
            self.env_runner_group.foreach_env_runner(_expect_any_weights)
            self.publish_weights()
        if PIPELINE in state:
            self._set_pipeline_state(state[PIPELINE])

    def _set_pipeline_state(self, state: dict[str, Any]) -> None:
        classes: Any = self.metrics.stats_cls_lookup
        self._fragments.extend(fragment_of(saved, classes) for saved in state["fragments"])
        self._next_runner = state["next_runner"]
        self.lost_at_restore = state["lost_requests"]
        under_way = state["iteration"]
        self.updates_done = under_way["updates_done"]
        self._figures = PipelineFigures(**under_way["figures"])
        self._runner_metrics = [metrics_of(saved, classes) for saved in under_way["metrics"]]
        stage = self.env_runner_group.local_env_runner.env.stage
        restore_runners(self.env_runner_group, state["env_runners"], stage, self._updates)


def _begin_anew(learner: EpisodeColumnsLearner, seed: int) -> None:
    learner.begin_anew(seed)


def _expect_any_weights(env_runner: BatchedEnvRunner) -> None:
    env_runner.expect_any_weights()


def _of_learner(results: list[dict[str, Any]], name: str) -> int:
    """A count of the learners', which are all the same; 0 where nothing was counted."""
    stats = results[0].get(DEFAULT_MODULE_ID, {}).get(name)
    value = 0.0 if stats is None else float(stats.peek())
    return 0 if math.isnan(value) else round(value)


def _equal_steps(config: Any, batches: list[MultiAgentBatch]) -> dict[str, int]:
    """The same number of gradient steps for all learners, whose shares may differ by an episode:
    one with a minibatch more than the others would wait for their gradients for ever."""
    if len(batches) == 1 or not config.minibatch_size:
        return {}
    fewest = min(len(part[DEFAULT_MODULE_ID]["lengths"]) for part in batches)
    return {"num_total_minibatches": max(1, config.num_epochs * fewest // config.minibatch_size)}
