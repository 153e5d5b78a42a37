"""The settings of `ToolAgent`."""

from __future__ import annotations

from typing import Any, Literal, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from toolagent.cluster.process_group import LoopbackLearnersMixin
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.models.rl_module import StageGRUModule
from toolagent.rollouts.draw import EXPLORER_KINDS
from toolagent.rollouts.env_runner import BatchedEnvRunner

MOST_EPISODES = 10_000_000  # in an update: a gigabyte
ADVANTAGE_ESTIMATORS = ("gae", "leave_one_out")
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
_UNSET: Any = NotProvided  # RLlib's mark for an argument that was not given


class ToolAgentConfig(LoopbackLearnersMixin, AlgorithmConfig):
    """Settings of `ToolAgent`: AlgorithmConfig's own, and those of `training()` below."""

    def __init__(self, algo_class: type | None = None):
        from toolagent.learning.algorithm import ToolAgent  # which imports this file

        super().__init__(algo_class=algo_class or ToolAgent)
        self.env_runner_cls = BatchedEnvRunner
        self.num_env_runners = 1
        self.num_envs_per_env_runner = 512
        self.batch_mode = "complete_episodes"
        self.lr = 3e-3
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.gamma = 1.0
        self.min_time_s_per_iteration = 0.0
        # Connector states are all that RLlib would sync by itself, and there are none.
        self._dont_auto_sync_env_runner_states = True
        # RLlib's two looks at every gradient; the learner looks once, at their norm.
        self.torch_skip_nan_gradients = True

        self.episodes_per_update = 512
        self.group_size = 1
        self.advantage_estimator = "gae"
        self.failed_problem_share = 0.0
        self.practice_problems = False
        self.updates_per_iteration = 20
        self.lambda_ = 1.0
        self.vf_loss_coeff = 0.5
        self.weight_decay = 0.0
        self.entropy_coeff = 0.01
        self.entropy_follows_return = False
        self.normalize_advantages = True
        self.clip_param: float | None = 0.2
        self.max_staleness = 1
        self.explorer_share = 0.0
        self.explorer_kind = "trials"
        self.explore_until_solved = 0.9
        self.replay_coeff = 0.0
        self.replay_episodes = 128
        self.num_epochs = 1
        self.minibatch_size = None

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        episodes_per_update: int = _UNSET,
        group_size: int = _UNSET,
        advantage_estimator: Literal["gae", "leave_one_out"] = _UNSET,
        failed_problem_share: float = _UNSET,
        practice_problems: bool = _UNSET,
        updates_per_iteration: int = _UNSET,
        lambda_: float = _UNSET,
        vf_loss_coeff: float = _UNSET,
        weight_decay: float = _UNSET,
        entropy_coeff: float = _UNSET,
        entropy_follows_return: bool = _UNSET,
        normalize_advantages: bool = _UNSET,
        clip_param: float | None = _UNSET,
        max_staleness: int = _UNSET,
        explorer_share: float = _UNSET,
        explorer_kind: Literal["trials", "detours"] = _UNSET,
        explore_until_solved: float = _UNSET,
        replay_coeff: float = _UNSET,
        replay_episodes: int = _UNSET,
        **kwargs: Any,
    ) -> Self:
        """What `AlgorithmConfig.training()` does not know.

        Args:
            episodes_per_update: whole episodes in one gradient step (over all learners).
            group_size: how often each problem is played; the episodes of one problem are
                a group.
            advantage_estimator: "gae" (with the value head), or "leave_one_out": against the
                other episodes of the same problem; then group_size is at least 2.
            failed_problem_share: share of the current stage's problems that are drawn from those
                that were mostly failed before (`FailedProblems`).
            practice_problems: train on the problems that the task recommends (`Task.practice`);
                accuracy is always measured on all kinds.
            updates_per_iteration: gradient steps in one `train()` call.
            lambda_: trace decay of the advantage estimates; 1 uses whole returns.
            vf_loss_coeff: weight of the value loss.
            weight_decay: added to the gradient, times the weights. It acts where the losses have
                little left to say, and makes what was learned hold for longer problems.
            entropy_coeff: weight of the entropy bonus.
            entropy_follows_return: once a stage is mostly solved, no bonus where nothing succeeds
                (`Exploration`).
            normalize_advantages: mean 0, standard deviation 1 over the batch.
            clip_param: clip of the probability ratio that corrects older data; None: no
                correction (plain A2C; then max_staleness must be 0 and num_epochs 1).
            max_staleness: how many updates old the weights that played an episode may be when
                it is learned from; 0 is strictly on-policy (sampling waits for the learner).
            explorer_share: share of the episodes that explorers play (`Exploration`); 0: none.
            explorer_kind: "trials" of tokens that are known to do something (`TrialTable`), or
                "detours" from the policy's own way (`Detours`); then group_size is at
                least 2.
            explore_until_solved: explorers and replay end for a stage once the policy solves this
                share of its training episodes: there is nothing left to find.
            replay_coeff: weight of the self-imitation loss on replayed solved episodes
                (`SuccessReplay`; what explorers found on detours: `VerifiedReplay`); 0: none.
            replay_episodes: solved episodes replayed in an update.
            kwargs: those of `AlgorithmConfig.training()` (lr, gamma, grad_clip, num_epochs,
                minibatch_size in episodes, ...).
        """
        super().training(**kwargs)
        for name, value in (
            ("episodes_per_update", episodes_per_update),
            ("group_size", group_size),
            ("advantage_estimator", advantage_estimator),
            ("failed_problem_share", failed_problem_share),
            ("practice_problems", practice_problems),
            ("entropy_follows_return", entropy_follows_return),
            ("updates_per_iteration", updates_per_iteration),
            ("lambda_", lambda_),
            ("vf_loss_coeff", vf_loss_coeff),
            ("weight_decay", weight_decay),
            ("entropy_coeff", entropy_coeff),
            ("normalize_advantages", normalize_advantages),
            ("clip_param", clip_param),
            ("max_staleness", max_staleness),
            ("explorer_share", explorer_share),
            ("explorer_kind", explorer_kind),
            ("explore_until_solved", explore_until_solved),
            ("replay_coeff", replay_coeff),
            ("replay_episodes", replay_episodes),
        ):
            if value is not _UNSET:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return EpisodeColumnsLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=StageGRUModule)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        super().validate()
        self._validate_parts()
        for name in ("episodes_per_update", "group_size", "updates_per_iteration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.episodes_per_update > MOST_EPISODES:
            raise ValueError(
                f"episodes_per_update is {self.episodes_per_update}; it must be at most "
                f"{MOST_EPISODES:,}"
            )
        self._validate_groups()
        for name in (
            "max_staleness",
            "weight_decay",
            "replay_coeff",
            "replay_episodes",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.explorer_share < 1:
            raise ValueError(
                f"explorer_share is {self.explorer_share}; it must be at least 0 and below 1 (the "
                "policy needs episodes to learn from)"
            )
        if not 0 < self.explore_until_solved < 1:
            raise ValueError(
                f"explore_until_solved is {self.explore_until_solved}; it must be above 0 and "
                "below 1, or exploring would never end"
            )
        if self.explorer_share > 0 and self.replay_coeff == 0:
            raise ValueError(
                "explorer_share needs replay_coeff above 0: what explorers find is learned "
                "from by replay only"
            )
        if self.episodes_per_update < max(1, self.num_learners or 0):
            raise ValueError(
                f"episodes_per_update is {self.episodes_per_update}; {self.num_learners} learners "
                "need at least one each"
            )
        most = self.episodes_per_update // max(1, self.num_learners or 0)
        if self.minibatch_size is not None and self.minibatch_size > most:
            # RLlib would go round and round in a batch until a minibatch is full.
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}; a learner has {most} episodes in an "
                "update (episodes_per_update)"
            )
        if self.clip_param is None and (self.max_staleness > 0 or self.num_epochs > 1):
            raise ValueError(
                "clip_param is None, so data of an older policy can't be corrected; set "
                "max_staleness to 0 and num_epochs to 1, or give a clip_param"
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

    def _validate_groups(self) -> None:
        """Raises ValueError where episodes can't be played in groups as configured."""
        group = self.group_size
        for name in ("episodes_per_update", "num_envs_per_env_runner"):
            if getattr(self, name) % group:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be a multiple of group_size, {group}"
                )
        if self.advantage_estimator not in ADVANTAGE_ESTIMATORS:
            raise ValueError(
                f"advantage_estimator is '{self.advantage_estimator}'; expected one of "
                f"{', '.join(ADVANTAGE_ESTIMATORS)}"
            )
        if self.advantage_estimator == "leave_one_out" and group < 2:
            raise ValueError(
                "advantage_estimator 'leave_one_out' compares episodes of one problem; set "
                f"group_size to 2 or more, not {group}"
            )
        if self.entropy_follows_return and group < 2:
            raise ValueError(
                "entropy_follows_return looks at the other episodes of a problem; set "
                f"group_size to 2 or more, not {group}"
            )
        if self.explorer_kind not in EXPLORER_KINDS:
            raise ValueError(
                f"explorer_kind is '{self.explorer_kind}'; expected one of "
                f"{', '.join(EXPLORER_KINDS)}"
            )
        if self.explorer_kind == "detours" and self.explorer_share > 0 and group < 2:
            raise ValueError(
                "explorer_kind 'detours' tries a plan on several problems; set "
                f"group_size to 2 or more, not {group}"
            )
        if not 0 <= self.failed_problem_share <= 1:
            raise ValueError(
                f"failed_problem_share is {self.failed_problem_share}; it must be in 0..1"
            )

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}
