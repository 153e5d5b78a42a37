"""RLlib's own PPO, kept as the baseline and as the proof that stock RLlib works here."""

from __future__ import annotations

from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.utils.annotations import override

from toolagent.cluster.loopback_learners import LoopbackLearnersMixin
from toolagent.cluster.ray_internals import TemporaryLogFolder
from toolagent.learning.callback_state import CallbackStateMixin
from toolagent.learning.iteration import IterationMixin


class StockPPO(CallbackStateMixin, IterationMixin, TemporaryLogFolder, PPO):
    """PPO as RLlib ships it, with the curriculum's state in its checkpoints.

    RLlib's training step, one batch of samples and the epochs on it, is the unit between which
    `between_updates` is called: an iteration has several where `reporting` asks for more.
    """

    @override(PPO)
    def training_step(self) -> None:
        self._may_update()
        super().training_step()


class StockPPOConfig(LoopbackLearnersMixin, PPOConfig):
    """RLlib's PPO settings for `StockPPO`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or StockPPO)
