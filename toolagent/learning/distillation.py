"""A network that imitates what another one solved: the second phase of a run (`student`)."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import VF_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from toolagent.learning.algorithm import ToolAgent, ToolAgentConfig
from toolagent.learning.batches import STEP_COLUMNS, learner_batches, training_data
from toolagent.learning.faults import LearningFailed
from toolagent.learning.learner import IMITATION_LOSS, EpisodeColumnsLearner
from toolagent.learning.lessons import Lessons
from toolagent.learning.losses import policy_step
from toolagent.learning.options import (
    NonNegative,
    PipelineOptions,
    Positive,
    Share,
    UpdateOptions,
)
from toolagent.learning.pipeline_figures import PipelineFigures
from toolagent.learning.returns import generalized_advantages, masked_mean, step_mask
from toolagent.models.base import AgentNetwork
from toolagent.models.rl_module import build_network
from toolagent.rollouts.episode_batch import EpisodeBatch

LESSONS_RIGHT = "lessons_right"
_LESSON = "lesson"  # (B,) int64: which one an episode is a way of
_COST = "cost"  # (B,) float32: of a way, the negative logarithm of p in `DistillationLearner`
_COLUMNS = ("stage", "context", "lengths", *STEP_COLUMNS)
_STREAM = 0x6C657373  # 'less'
_LIFETIME = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)


class DistillationOptions(UpdateOptions):
    """Options of the second phase: `student: {training: {...}}`. Its `lr` may be a schedule by the
    student's updates."""

    updates: Positive = 1000
    """Gradient steps that the student makes; then the run ends."""
    lessons: Positive = 8000
    """Episodes that are learned from, the latest (`Lessons`)."""
    lesson_variants: Positive = 4
    """Problems of one structure that a plan has to solve to be a lesson."""
    lesson_every: Positive = 10
    """Updates between two times that some more lessons are played."""
    retell_after: Positive = 600
    """Updates after which new lessons are what the student itself is right with, which it writes in
    one way throughout; the agent's are what the student fails at."""
    begin_anew_after: Positive = 350
    """Updates after which a student that writes too few lessons is begun anew, with other first
    weights, and so after `retell_after`. One that is kept learns rewritten lessons
    (`Task.rewritten`) from then on."""
    begin_anew_below: Share = 0.75
    """That share of the lessons."""
    lateness_cost: NonNegative = 0.3
    """How much less a way is learned for each place that a tool stands later in it than in another
    way of the same lesson, as a logarithm."""
    kept_lateness_cost: NonNegative = 2.0
    """The same of a student that is kept: it knows by then what can be told while it reads."""
    vf_loss_coeff: NonNegative = 0.05
    """Weight of the value loss: the value head is trained along."""


class DistillationLearner(EpisodeColumnsLearner):
    """Imitates lessons, each of which may be written in several ways.

        loss = -sum over lessons of log(sum over the lesson's ways of pi(way) p(way)) / actions
               + vf_loss_coeff * mean((V - R)^2)
        p(way) = exp(-cost * sum of the places of its tools)

    where pi(way) is the product of its actions' probabilities, and R the discounted return to go.
    So the student learns the way that it finds likely already, and what is likely to it follows
    from what it has learned of all lessons: it comes to write in one way throughout. Of ways
    that are as likely to it, p prefers the one that puts nothing off: what is put off has to be
    kept in mind, and longer problems have more of it.

    Source: Guu et al. 2017, "From language to programs: bridging reinforcement learning and maximum
    marginal likelihood".
    """

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        self.network.noisy = True

    @override(Learner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        logits, values = fwd_out[Columns.ACTION_DIST_INPUTS], fwd_out[Columns.VF_PREDS]
        mask = step_mask(batch["lengths"], logits.shape[1])  # (B, T)
        actions, rewards = batch["actions"], batch["rewards"]
        log_probabilities = policy_step(logits, actions).log_probabilities * mask
        likely, lesson = log_probabilities.sum(1), batch[_LESSON]  # (B,)
        # The gradient of the logarithm of a sum, as a mean with weights that have none.
        weights = weights_of_ways(likely.detach() - batch[_COST], lesson)
        actions_learned = (weights.unsqueeze(1) * mask).sum()
        imitation = -(weights * likely).sum() / actions_learned
        _, returns = generalized_advantages(rewards, rewards * 0, mask, config.gamma, 1.0)
        value_loss = masked_mean((values - returns).square(), mask)
        written = ((logits.argmax(2) == actions) | ~mask).all(1)  # in one of the ways, at most
        right = written.sum() / lesson.unique().numel()
        figures = {IMITATION_LOSS: imitation.detach(), VF_LOSS_KEY: value_loss.detach()}
        self.metrics.log_dict(figures, key=module_id, window=1)
        self.metrics.log_value((module_id, LESSONS_RIGHT), right, window=20)
        return imitation + config.vf_loss_coeff * value_loss


def weights_of_ways(likely: Tensor, lesson: Tensor) -> Tensor:
    """(B,) how much each way to write a lesson is learned: its share of the lesson's probability.

    Args:
        likely: (B,) the logarithms of what is in proportion to the ways' probabilities.
        lesson: (B,) int64 numbers from 0 on: which lesson each is of.
    """
    count = int(lesson.max()) + 1
    most = likely.new_full((count,), -torch.inf).scatter_reduce(0, lesson, likely, "amax")
    shares = torch.exp(likely - most[lesson])
    return shares / likely.new_zeros(count).index_add(0, lesson, shares)[lesson]


class DistillationConfig(ToolAgentConfig):
    """Settings of `Distillation`."""

    OPTIONS = DistillationOptions

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or Distillation)
        # What the pipeline asks for and the student has no use for.
        for name, option in PipelineOptions.model_fields.items():
            if name not in self.OPTIONS.model_fields:
                setattr(self, name, option.default)
        self.teacher: dict[str, Any] = {}  # the model config of the agent that is imitated
        self.stages: list[int] = []  # that lessons are of, the last one most of all
        self.earlier_share = 0.0  # of the lessons, of other stages than the last
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 1
        self.gamma = 0.95

    @override(ToolAgentConfig)
    def get_default_learner_class(self) -> type:
        return DistillationLearner

    @override(AlgorithmConfig)
    def validate(self) -> None:
        super().validate()
        config: Any = self
        if self.num_env_runners:
            raise ValueError(
                f"num_env_runners is {self.num_env_runners}; lessons are played where they are "
                "learned from: use 0"
            )
        if config.updates % config.updates_per_iteration:
            raise ValueError(
                f"updates is {config.updates}; it must be a multiple of updates_per_iteration, "
                f"{config.updates_per_iteration}"
            )


class Distillation(ToolAgent):
    """A student that learns from the agent of another algorithm, then from its own successes.

    It begins with what `handover` says of that algorithm. Lessons are played in this process, and
    their env steps are counted.

    Attributes:
        news: lines for whoever runs it; they are taken away there.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> DistillationConfig:
        return DistillationConfig()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        self.news: list[str] = []
        self._student_updates = 0
        self._begun = 1  # students so far
        self._teacher: AgentNetwork | None = None
        self._lesson = np.zeros(0, np.int64)  # of the batch that was sampled last
        super().setup(config)
        module: Any = self.get_module()
        self._module = copy.deepcopy(module).cpu()
        task = self.env_runner_group.local_env_runner.env.task
        seed = None if self.config.seed is None else (int(self.config.seed), _STREAM)
        self._lessons = Lessons(
            task,
            self.config.stages,
            self.config.earlier_share,
            self.config.lesson_variants,
            self.config.lessons,
            np.random.default_rng(np.random.SeedSequence(seed)),
        )

    @property
    def finished(self) -> bool:
        """Whether the student has made all its updates."""
        return self._student_updates >= self.config.updates

    @property
    def _kept(self) -> bool:
        """Whether the student has passed `begin_anew_after`."""
        return self._student_updates >= self.config.begin_anew_after

    @override(ToolAgent)
    def training_step(self) -> None:
        figures = self._figures
        super().training_step()
        self.metrics.log_value(
            _LIFETIME, figures.env_steps, reduce="lifetime_sum", with_throughput=True
        )

    @override(ToolAgent)
    def publish_weights(self, weights: dict[str, Any] | None = None) -> None:
        """Nobody else plays with them."""
        self._published_stage = self._stage()

    @override(ToolAgent)
    def _next_batch(self, figures: PipelineFigures) -> EpisodeBatch:
        config, lessons = self.config, self._lessons
        if self._student_updates % config.lesson_every == 0:
            while True:
                env_steps, share = lessons.play(*self._tellers())
                figures.env_steps += env_steps
                if len(lessons) == config.lessons:
                    break
                if not share:
                    raise LearningFailed("the agent solves nothing that could be imitated")
        episodes, self._lesson = lessons.sample(config.episodes_per_update, self._kept)
        return episodes

    def _tellers(self) -> list[AgentNetwork]:
        """Whose successes are learned from."""
        assert self._teacher is not None, "an algorithm without a handover"
        if self._student_updates < self.config.retell_after:
            return [self._teacher]
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
        self._module.set_state(state[DEFAULT_MODULE_ID])
        return [self._module.network, self._teacher]

    @override(ToolAgent)
    def _update(self, batch: EpisodeBatch, reduce_metrics: bool) -> int:
        config = self.config
        columns = {name: getattr(batch, name) for name in _COLUMNS}
        columns[_LESSON] = self._lesson
        cost = config.kept_lateness_cost if self._kept else config.lateness_cost
        columns[_COST] = np.float32(cost) * self._lessons.lateness(batch)
        columns["replayed"] = np.zeros(len(batch), bool)
        batches = learner_batches(columns, config.num_learners)
        results = self.learner_group.update(
            training_data=training_data(batches, config.num_learners),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._student_updates},
            _no_metrics_reduce=not reduce_metrics,
        )
        self._updates += 1
        self._student_updates += 1
        if reduce_metrics:
            right = results[0][DEFAULT_MODULE_ID][LESSONS_RIGHT].peek()
            self._note_learners(results)
            self._begin_anew_if_lost(float(right))
        return sum(part.env_steps() for part in batches)

    def _begin_anew_if_lost(self, right: float) -> None:
        config, updates = self.config, self._student_updates
        before = updates - config.updates_per_iteration
        points = (config.begin_anew_after, config.retell_after)
        if right >= config.begin_anew_below or not any(before < at <= updates for at in points):
            return
        self.news.append(
            f"student {self._begun} writes {right:.0%} of the lessons after {updates:,} "
            f"updates; student {self._begun + 1} begins"
        )
        self._student_updates, self._begun = 0, self._begun + 1
        self.begin_anew(self._begun)

    # Checkpoints --------------------------------------------------------------------------

    @override(ToolAgent)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return state | {
            "student": {"updates": self._student_updates, "begun": self._begun},
            "lessons": self._lessons.get_state(),
            "teacher": {} if self._teacher is None else _weights(self._teacher),
        }

    @override(ToolAgent)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if state.get("teacher"):
            self._teacher = build_network(self.config.teacher).eval()
            self._teacher.load_state_dict(
                {name: torch.tensor(value) for name, value in state["teacher"].items()}
            )
        if "env_steps_before" in state:
            steps = state["env_steps_before"]
            self.metrics.log_value(_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        if "student" in state:
            self._student_updates = state["student"]["updates"]
            self._begun = state["student"]["begun"]
            self._lessons.set_state(state["lessons"])


def handover(algorithm: Any, network: AgentNetwork) -> dict[str, Any]:
    """What a `Distillation` begins with, for its `set_state`.

    Args:
        algorithm: the one before.
        network: its agent.
    """
    state = algorithm.get_state(components=["callbacks"])
    return {
        "training_iteration": algorithm.iteration,
        "callbacks": state["callbacks"],
        "env_steps_before": algorithm.env_steps,
        "teacher": _weights(network),
    }


def _weights(network: AgentNetwork) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}
