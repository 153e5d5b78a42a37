"""The RLlib callback that measures, applies the curriculum's rule and tells the env runners."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from toolagent.curriculum.rule import CurriculumSettings, CurriculumState, decide
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.certification import StageAccuracy, measure
from toolagent.tasks import Task, get_task

CURRICULUM = "curriculum"  # where its figures stand in a result
LEAST_WEIGHT = 0.02  # of an earlier stage of which nothing is forgotten
_START_STREAM = 0x73746172  # 'star': of the measurement before the first update
_MEASURE_STREAM = 0x6D656173  # 'meas': keeps the measured problems apart from any runner's


class CurriculumCallback(RLlibCallback):
    """Advances the stage by env steps, iterations or measured accuracy.

    The accuracy is measured here, by the greedy agent with the learner's newest weights on fresh
    problems, not taken from training episodes: those are sampled, shaped and of mixed stages.
    Only the stages that are trained on are measured.

    The stage travels to local, remote, evaluation and recreated env runners as one integer, when
    it changes. Episodes carry the stage that they were played on (`stage` in their observation
    and in every episode batch).

    Give the class to RLlib as `functools.partial(CurriculumCallback, settings)`.
    """

    def __init__(self, settings: CurriculumSettings | None = None):
        super().__init__()
        self.settings = settings or CurriculumSettings()
        self.state = CurriculumState()
        self.measured: list[StageAccuracy] = []  # the latest measurement
        self.network: AgentNetwork | None = None  # what was measured
        self.passed: str | None = None  # why the last level is passed, as was measured last
        self._rng: np.random.Generator | None = None

    @property
    def stage(self) -> int:
        """The stage that is trained on now."""
        return self.settings.levels[self.state.level].stage

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Prepares measuring and sends the first stage to all env runners."""
        self.task: Task = get_task(algorithm.config.env_config["task"])
        self.settings.check_stages(self.task.stages)
        seed = algorithm.config.seed
        self._rng = np.random.default_rng(
            np.random.SeedSequence(None if seed is None else (int(seed), _MEASURE_STREAM))
        )
        self._module = copy.deepcopy(algorithm.get_module()).cpu()
        self.network = self._module.network
        if not algorithm.config.is_online:
            # The records decide what is learned from: all levels at once.
            self.state = CurriculumState(level=len(self.settings.levels) - 1)
        self._send_stage(algorithm)

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """Measures, decides, and reports both in `result["curriculum"]`."""
        iteration = int(algorithm.iteration)
        env_steps = env_steps_of(result)
        trained_stage, reason = self.stage, None
        fresh = iteration % self.settings.measure_every_iterations == 0
        if fresh:
            self.refresh_network(algorithm)
            assert self.network is not None and self._rng is not None
            self.measured = measure(
                self.network,
                self.task,
                self.settings.trained_stages(self.task.stages),
                self._rng,
                self.settings.measure_problems,
            )
        decision = decide(
            self.settings,
            self.state,
            env_steps=env_steps,
            iteration=iteration,
            measured={row.stage: (row.solved, row.problems) for row in self.measured}
            if fresh
            else None,
        )
        if fresh:
            self._weigh_earlier_stages(algorithm)
        self.passed = decision.passed
        if decision.state != self.state:
            begins_anew = decision.state.networks > self.state.networks
            self.state, reason = decision.state, decision.reason
            if begins_anew:
                algorithm.begin_anew(self.state.networks)
            self._send_stage(algorithm)
        result[CURRICULUM] = {
            "stage": trained_stage,
            "next_stage": self.stage,
            "level": self.state.level,
            "reason": reason,
            "measured": fresh,
            "accuracy": {str(row.stage): row.accuracy for row in self.measured},
            "mean_return": {str(row.stage): row.mean_return for row in self.measured},
            "programs": {
                str(row.stage): row.programs.record() for row in self.measured if row.programs
            },
        }

    def accuracy_at_start(self, algorithm: Any) -> dict[str, float]:
        """The accuracy by stage before the first update. Its problems are a stream of their own:
        nothing that is measured later depends on them."""
        seed = algorithm.config.seed
        stages = self.settings.trained_stages(self.task.stages)
        rng = np.random.default_rng(
            np.random.SeedSequence(None if seed is None else (int(seed), _START_STREAM))
        )
        network = self.refresh_network(algorithm)
        found = measure(network, self.task, stages, rng, self.settings.measure_problems)
        return {str(row.stage): row.accuracy for row in found}

    def refresh_network(self, algorithm: Any) -> AgentNetwork:
        """Loads the learner's newest weights into `network` and returns it."""
        state = algorithm.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
        self._module.set_state(state[DEFAULT_MODULE_ID])
        assert self.network is not None
        return self.network

    def on_env_runners_recreated(
        self,
        *,
        algorithm: Any,
        env_runner_group: Any,
        env_runner_indices: list[int],
        is_evaluation: bool,
        **kwargs: Any,
    ) -> None:
        """Sends the stage to recreated runners, which start without it."""
        _set_stage(env_runner_group, self.stage, env_runner_indices)

    def get_state(self) -> dict[str, Any]:
        """For the algorithm's checkpoint (`learning.callback_state`)."""
        assert self._rng is not None
        return {
            "curriculum": self.state.to_dict(),
            "measure_stream": self._rng.bit_generator.state,
            "measured": [asdict(row) for row in self.measured],
        }

    def set_state(self, state: dict[str, Any], algorithm: Any) -> None:
        """The inverse of `get_state`; sends the restored stage to all env runners."""
        assert self._rng is not None
        restored = CurriculumState.from_dict(state["curriculum"])
        if restored.level >= len(self.settings.levels):
            raise ValueError(
                f"the checkpoint stands at curriculum level {restored.level}; the settings "
                f"have {len(self.settings.levels)} levels"
            )
        self.state = restored
        self._rng.bit_generator.state = state["measure_stream"]
        self.measured = [StageAccuracy.from_dict(row) for row in state["measured"]]
        self._weigh_earlier_stages(algorithm)
        self._send_stage(algorithm)

    def _weigh_earlier_stages(self, algorithm: Any) -> None:
        """Notes how much of each stage is forgotten; runners learn of it with the next weights."""
        if self.settings.earlier_stages == "forgotten" and self.measured:
            weights = np.zeros(self.task.num_stages)
            for row in self.measured:
                weights[row.stage - self.task.first_stage] = LEAST_WEIGHT + 1 - row.accuracy
            algorithm.env_runner_group.local_env_runner.env.earlier_stage_weights = weights

    def _send_stage(self, algorithm: Any) -> None:
        for group in (algorithm.env_runner_group, algorithm.eval_env_runner_group):
            if group is not None:
                _set_stage(group, self.stage)


def curriculum_of(algorithm: Any) -> CurriculumCallback:
    """The algorithm's own curriculum callback."""
    return next(c for c in algorithm.callbacks if isinstance(c, CurriculumCallback))


def env_steps_of(result: dict[str, Any]) -> int:
    """Env steps sampled in the whole run, from RLlib's result."""
    value = result.get(ENV_RUNNER_RESULTS, {}).get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
    return 0 if value != value else int(value)


def _set_stage(group: Any, stage: int, remote_ids: list[int] | None = None) -> None:
    """One integer to the given runners, or to all of a group, the local one included."""

    def apply(env_runner: Any) -> None:
        if env_runner.env is not None:
            # Gymnasium's own vectorization has no `set_stage`, its environments have.
            env_runner.env.unwrapped.call("set_stage", stage)

    # Without waiting: each runner executes its calls in order, and a hung one must not block the
    # others.
    group.foreach_env_runner(
        apply,
        remote_worker_ids=remote_ids,
        local_env_runner=remote_ids is None,
        timeout_seconds=0.0,
    )
