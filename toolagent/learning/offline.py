"""Learning from recorded episodes: behaviour cloning and MARWIL, without an environment."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.marwil import MARWIL, MARWILConfig
from ray.rllib.algorithms.marwil.torch.marwil_torch_learner import MARWILTorchLearner
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from toolagent.cluster.loopback_learners import LoopbackLearnersMixin
from toolagent.cluster.ray_internals import TemporaryLogFolder
from toolagent.envs.registration import task_of_env_id
from toolagent.learning.batches import training_data
from toolagent.learning.callback_state import CallbackStateMixin
from toolagent.learning.iteration import IterationMixin
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.learning.options import OfflineOptions, OptionsMixin
from toolagent.learning.recorded_data import RecordedEpisodesData
from toolagent.learning.returns import generalized_advantages, step_mask
from toolagent.models.rl_module import NetworkModule

_MOVING_AVERAGES = "moving_averages"


class OfflineLearner(EpisodeColumnsLearner, MARWILTorchLearner):
    """RLlib's MARWIL loss on columns of whole episodes; with beta 0 it is behaviour cloning.

        loss = -mean(w log pi(a)) + vf_coeff / 2 mean((R - V)^2),   w = exp(beta (R - V) / c)

    with R the discounted return to go, no gradient through w, and c^2 a moving average of
    (R - V)^2. With beta 0, w is 1 and there is no value loss.

    Source: Wang et al. 2018, "Exponentially weighted imitation learning for batched historical
    data", and RLlib's `MARWILTorchLearner`, which computes it.
    """

    @override(EpisodeColumnsLearner)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """With the moving average c^2 of each module, which RLlib's state leaves out."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_MOVING_AVERAGES, components, not_components):
            averages = self.moving_avg_sqd_adv_norms_per_module
            state[_MOVING_AVERAGES] = {name: float(value) for name, value in averages.items()}
        return state

    @override(EpisodeColumnsLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for name, value in state.get(_MOVING_AVERAGES, {}).items():
            self.moving_avg_sqd_adv_norms_per_module[name] = self._get_tensor_variable(value)

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        mask = step_mask(batch["lengths"], batch["actions"].shape[1])  # (B, T)
        rewards = batch["rewards"]
        _, returns = generalized_advantages(rewards, rewards * 0, mask, config.gamma, 1.0)
        return MARWILTorchLearner.compute_loss_for_module(  # type: ignore[return-value]
            self,
            module_id=module_id,
            config=config,
            batch={
                **batch,
                Columns.LOSS_MASK: mask,
                Postprocessing.VALUE_TARGETS: returns,
            },
            # Of what `_forward_train` has computed, these are what `compute_values` starts from.
            fwd_out={**fwd_out, Columns.EMBEDDINGS: fwd_out[Columns.VF_PREDS]},
        )


class OfflineMARWILConfig(OptionsMixin, LoopbackLearnersMixin, MARWILConfig):
    """RLlib's MARWIL settings for `OfflineMARWIL`, and `OfflineOptions` in `training()`."""

    OPTIONS = OfflineOptions

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or OfflineMARWIL)
        self.offline_data_class = RecordedEpisodesData
        self.dataset_num_iters_per_learner = 1
        self.num_env_runners = 0
        self.lr = 3e-3
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.gamma = 1.0
        # RLlib's 100 and 1e-8 suit returns in the hundreds; ours are at most 1.2.
        self.moving_average_sqd_adv_norm_start = 1.0
        self.moving_average_sqd_adv_norm_update_rate = 0.05
        self.min_time_s_per_iteration = 0.0

    @override(MARWILConfig)
    def get_default_learner_class(self) -> type:
        return OfflineLearner

    @override(MARWILConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        task = self.env_config.get("task") or task_of_env_id(self.env)
        return RLModuleSpec(module_class=NetworkModule, model_config={"task": task})

    @override(MARWILConfig)
    def validate(self) -> None:
        super().validate()
        if self.num_env_runners:
            raise ValueError(
                f"num_env_runners is {self.num_env_runners}; recorded episodes are played "
                "already: use 0"
            )

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}


class OfflineMARWIL(CallbackStateMixin, IterationMixin, TemporaryLogFolder, MARWIL):
    """MARWIL on recorded episodes, without env runners."""

    # RLlib types these as their base classes, or as what they are before `setup`.
    config: Any
    learner_group: Any
    offline_data: Any
    _steps = 0  # env steps learned from in the iteration under way

    @classmethod
    @override(MARWIL)
    def get_default_config(cls) -> OfflineMARWILConfig:
        return OfflineMARWILConfig()

    @override(MARWIL)
    def training_step(self) -> None:
        config, updates = self.config, self.config.updates_per_iteration
        lifetime = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        while self.updates_done < updates and self._may_update():
            last = self.updates_done + 1 == updates
            batches = self.offline_data.sample(
                config.episodes_per_update, num_shards=config.num_learners
            )
            results = self.learner_group.update(
                training_data=training_data(batches, config.num_learners),
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps},
                _no_metrics_reduce=not last,
            )
            self._steps += sum(part.env_steps() for part in batches)
            self.updates_done += 1
            if last:
                self._note_learners(results)
        if 0 < self.updates_done < updates:
            self._take_learner_metrics()
        # As RLlib does it offline: what is drawn from the records counts as sampled.
        self.metrics.log_value(lifetime, self._steps, reduce="lifetime_sum", with_throughput=True)
        self._steps = 0
        self._end_updates()

    @override(IterationMixin)
    def _env_steps_not_counted(self) -> int:
        return self._steps

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule:
        """A module of the configured kind and sizes; its weights are not the learner's.

        RLlib's would be an env runner's, and there are none.
        """
        spec = copy.deepcopy(self.config.rl_module_spec)
        spec.observation_space = self.config.observation_space
        spec.action_space = self.config.action_space
        spec.inference_only = True
        return spec.build()

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """As in RLlib, but for its last step, which syncs env runners and fails without any."""
        Checkpointable.restore_from_path(self, path, *args, **kwargs)

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.updates_done:
            self._take_learner_metrics()
        return super().get_state(*args, **kwargs) | {
            "records": self.offline_data.get_state(),
            "iteration": {"updates_done": self.updates_done, "env_steps": self._steps},
        }

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        # RLlib would send the learners' weights on to env runners, and there are none.
        if COMPONENT_LEARNER_GROUP in state:
            self.learner_group.set_state(state[COMPONENT_LEARNER_GROUP])
        super().set_state(
            {name: value for name, value in state.items() if name != COMPONENT_LEARNER_GROUP}
        )
        if "records" in state:
            self.offline_data.set_state(state["records"])
            self._end_updates()
            self.updates_done = state["iteration"]["updates_done"]
            self._steps = state["iteration"]["env_steps"]


class OfflineBCConfig(OfflineMARWILConfig):
    """Behaviour cloning: MARWIL with beta 0, on solved episodes.

    With `min_program_success` not those that a wrong program solved by luck: on stage 2 of the
    calculator `MUL ADD SUB ANS` is right on 19% of the problems, and in the records of a run that
    ended when it had found the right program, lucky episodes are most of the solved ones.
    """

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or OfflineBC)
        self.beta = 0.0
        self.solved_only = True

    @override(OfflineMARWILConfig)
    def validate(self) -> None:
        super().validate()
        if self.beta != 0.0:
            raise ValueError(f"beta is {self.beta}; behaviour cloning has 0, MARWIL more")


class OfflineBC(OfflineMARWIL):
    """Behaviour cloning of recorded episodes, without env runners."""

    @classmethod
    @override(MARWIL)
    def get_default_config(cls) -> OfflineBCConfig:
        return OfflineBCConfig()
