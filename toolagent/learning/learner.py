"""The learner of the batched pipeline: one loss on episode columns, no connector pipeline."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor

from toolagent.learning.averaging import AveragingLearner
from toolagent.learning.losses import LossParts, actor_critic_loss
from toolagent.models.allocation import tune_allocation
from toolagent.models.base import AgentNetwork
from toolagent.models.rl_module import build_network
from toolagent.phases import timed

APPROX_KL = "approx_kl"
CLIPFRAC = "clipfrac"
EXPLAINED_VARIANCE = "vf_explained_var"  # as RLlib's PPO calls it
GRADIENT_NORM = "gradients_default_optimizer_global_norm"  # as RLlib calls it
IMITATION_LOSS = "imitation_loss"
MODULE_STATE = "_rl_module_state_after_update"  # as RLlib's IMPALA calls it
RANDOM_STREAMS = "random_streams"
SKIPPED_UPDATES = "skipped_updates"
SKIPPED_IN_A_ROW = "skipped_in_a_row"
# The names of the `LossParts` in RLlib's results.
_PARTS = (
    POLICY_LOSS_KEY,
    VF_LOSS_KEY,
    ENTROPY_KEY,
    IMITATION_LOSS,
    CLIPFRAC,
    APPROX_KL,
    EXPLAINED_VARIANCE,
)


class EpisodeColumnsLearner(AveragingLearner):
    """A2C and PPO on `EpisodeBatch` columns.

    loss = policy loss + vf_loss_coeff * mean((V - target)^2) - entropy_coeff * mean(entropy)
           + replay_coeff * imitation loss of the replayed episodes

    Means are over actions taken; nothing after an episode's end has a loss or a gradient. PPO is
    the same loss with `num_epochs` and `minibatch_size` (in episodes) above one pass; advantages
    are then recomputed with the current values for each minibatch (Andrychowicz et al. 2021,
    "What matters in on-policy reinforcement learning?", section 3.5).
    """

    compute_losses = timed("losses")(TorchLearner.compute_losses)
    compute_gradients = timed("backward")(AveragingLearner.compute_gradients)
    postprocess_gradients = timed("clip gradients")(TorchLearner.postprocess_gradients)

    def __repr__(self) -> str:
        """What Ray's dashboard calls this actor; it asks before the learner has its number."""
        return "learner"

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        self._skipped_in_a_row = 0
        # Since the metrics were reduced: of the latest update what computes the loss's parts, and
        # the gradient's norm as a tensor; of each batch the env steps.
        self._loss_parts: dict[str, Callable[[], LossParts]] = {}
        self._norms: dict[str, Tensor] = {}
        self._steps_trained: dict[str, list[int]] = {}
        # The matrices are small: a second thread would take a runner's core and gain nothing.
        torch.set_num_threads(1)
        tune_allocation()

    @override(Learner)
    @timed("learner")
    def update(
        self,
        *args: Any,
        return_state: bool = False,
        _no_metrics_reduce: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's update. With `return_state` the results have the modules' weights, under
        `MODULE_STATE`; until the next update they may be the very memory of the weights."""
        super().update(*args, _no_metrics_reduce=True, **kwargs)
        results = {} if _no_metrics_reduce else self.reduced_metrics()
        if return_state:
            modules: Any = self.module
            results[MODULE_STATE] = {
                module_id: {
                    name: tensor.numpy(force=True)
                    for name, tensor in module.unwrapped().state_dict().items()
                }
                for module_id, module in modules.items()
            }
        return results

    @classmethod
    @override(Learner)
    def rl_module_required_apis(cls) -> list[type]:
        return [ValueFunctionAPI]

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam, as in RLlib, with `weight_decay` times the weights added to the gradient."""
        parameters: Any = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, weight_decay=config.weight_decay, fused=True),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )

    @property
    def network(self) -> AgentNetwork:
        """What it trains."""
        module: Any = self.module[DEFAULT_MODULE_ID]
        return module.unwrapped().network

    def begin_anew(self, seed: int) -> None:
        """First weights of that seed, and an optimizer that has seen nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            spec: Any = self.config.rl_module_spec
            first = build_network(dict(spec.model_config))
        self.network.load_state_dict(first.state_dict())
        for optimizer in self._named_optimizers.values():
            optimizer.state.clear()  # type: ignore[attr-defined]

    @override(Learner)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state, the process's random streams, which shuffle minibatches, and how many
        updates in a row were skipped."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(RANDOM_STREAMS, components, not_components):
            state[RANDOM_STREAMS] = {
                "python": random.getstate(),
                "numpy": np.random.get_state(legacy=False),
                "torch": torch.get_rng_state(),
            }
            state[SKIPPED_IN_A_ROW] = self._skipped_in_a_row
        return state

    @override(Learner)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what is in `state`; what the config says of the optimizer still holds."""
        super().set_state(state)
        for module_id, optimizers in self._module_optimizers.items():
            config: Any = self.config.get_config_for_module(module_id=module_id)
            for name in optimizers:
                for group in self._named_optimizers[name].param_groups:  # type: ignore[attr-defined]
                    group["weight_decay"], group["fused"] = config.weight_decay, True
                    if isinstance(config.lr, int | float):  # a schedule sets it by env steps
                        group["lr"] = config.lr
        if RANDOM_STREAMS in state:
            streams = state[RANDOM_STREAMS]
            random.setstate(streams["python"])
            np.random.set_state(streams["numpy"])
            torch.set_rng_state(streams["torch"])
            self._skipped_in_a_row = state[SKIPPED_IN_A_ROW]

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        loss, parts = actor_critic_loss(
            fwd_out[Columns.ACTION_DIST_INPUTS], fwd_out[Columns.VF_PREDS], batch, config
        )
        self._loss_parts[module_id] = parts
        return loss

    @override(Learner)
    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: dict[Any, Any]
    ) -> dict[Any, Any]:
        """As in RLlib; the global norm is computed, and clipped by, for all tensors at once."""
        gradients = [each for each in module_gradients_dict.values() if each is not None]
        self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        if config.grad_clip is None or config.grad_clip_by != "global_norm":
            return super().postprocess_gradients_for_module(
                module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
            )
        torch.nn.utils.clip_grads_with_norm_(
            module_gradients_dict, config.grad_clip, self._gradient_norm
        )
        self._norms[module_id] = self._gradient_norm
        return module_gradients_dict

    @override(TorchLearner)
    @timed("optimizer")
    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        """One optimizer step; none, and weights and moments as they were, where a gradient is NaN
        or infinite.

        Several learners have averaged their gradients by now: all of them skip, or none does.
        """
        if bool(torch.isfinite(self._gradient_norm)):
            super().apply_gradients(gradients_dict)
            if self._skipped_in_a_row:
                self._note_skipped(0)
        else:
            self.metrics.log_value((DEFAULT_MODULE_ID, SKIPPED_UPDATES), 1, reduce="sum")
            self._note_skipped(self._skipped_in_a_row + 1)

    def _note_skipped(self, in_a_row: int) -> None:
        self._skipped_in_a_row = in_a_row
        self.metrics.log_value((DEFAULT_MODULE_ID, SKIPPED_IN_A_ROW), in_a_row, window=1)

    @override(TorchLearner)
    @timed("columns to tensors")
    def _convert_batch_type(
        self,
        batch: MultiAgentBatch,
        to_device: bool = True,
        pin_memory: bool = False,
        use_stream: bool = False,
    ) -> MultiAgentBatch:
        """On a GPU each column moves once, asynchronously, from pinned memory.

        On the default stream: the update that follows waits for the copy and nothing else does.
        On a CPU each column is copied: those of a remote env runner can't be written to, which
        torch would warn of.
        """
        if self._device.type == "cpu":
            batches = {
                module_id: SampleBatch({name: torch.tensor(each) for name, each in columns.items()})
                for module_id, columns in batch.policy_batches.items()
            }
            return MultiAgentBatch(batches, env_steps=batch.env_steps())
        pin_memory = pin_memory or self._device.type == "cuda"
        return super()._convert_batch_type(batch, to_device, pin_memory, use_stream)

    @override(Learner)
    def _create_iterator_if_necessary(
        self,
        *,
        training_data: TrainingData,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        **kwargs: Any,
    ) -> Iterable[MultiAgentBatch]:
        """Several epochs without minibatches go over the whole batch: RLlib would take its number
        of env steps for its number of rows, and put many copies of it into one gradient step."""
        if num_epochs > 1 and not minibatch_size:
            columns = next(iter(training_data.batch.policy_batches.values()))
            minibatch_size = len(columns["lengths"])
        return super()._create_iterator_if_necessary(
            training_data=training_data,
            num_epochs=num_epochs,
            minibatch_size=minibatch_size,
            **kwargs,
        )

    @override(Learner)
    def _set_slicing_by_batch_id(self, batch: MultiAgentBatch, *, value: bool) -> MultiAgentBatch:
        """Nothing to switch: a row is a whole episode. RLlib would ask a stateful module's batch
        for `seq_lens` as soon as minibatches are cut from it."""
        return batch

    @override(Learner)
    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        """RLlib counts rows, which are episodes here; its names mean env steps, so count those."""
        columns: Any
        for module_id, columns in batch.policy_batches.items():
            steps = int((columns["lengths"] * ~columns["replayed"]).sum())
            self._steps_trained.setdefault(module_id, []).append(steps)

    def reduced_metrics(self) -> dict[str, Any]:
        """RLlib's metrics since the last call. What every update has to say is logged here, at
        once: logging takes RLlib as long as a loss takes."""
        log = self.metrics.log_value
        for module_id, parts in self._loss_parts.items():
            figures = dict(zip(_PARTS, parts(), strict=True))
            self.metrics.log_dict(figures, key=module_id, window=1)
        for module_id, norm in self._norms.items():
            log((module_id, GRADIENT_NORM), norm, window=1)
        for module_id, steps in self._steps_trained.items():
            log((module_id, WEIGHTS_SEQ_NO), self._weights_seq_no, window=1)
            log((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), sum(steps) / len(steps), reduce="mean")
            for scope in (module_id, ALL_MODULES):
                log((scope, NUM_MODULE_STEPS_TRAINED), sum(steps), reduce="sum")
                log((scope, NUM_MODULE_STEPS_TRAINED_LIFETIME), sum(steps), reduce="lifetime_sum")
            log((ALL_MODULES, NUM_ENV_STEPS_TRAINED), sum(steps), reduce="sum")
            log(
                (ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME),
                sum(steps),
                reduce="lifetime_sum",
                with_throughput=True,
            )
        self._loss_parts, self._norms, self._steps_trained = {}, {}, {}
        return self.metrics.reduce()
