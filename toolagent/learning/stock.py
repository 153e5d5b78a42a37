"""RLlib's own PPO, kept as the baseline and as the proof that stock RLlib works here."""

from __future__ import annotations

from ray.rllib.algorithms.ppo import PPO, PPOConfig

from toolagent.cluster.process_group import LoopbackLearnersMixin
from toolagent.learning.callback_state import CallbackStateMixin


class StockPPO(CallbackStateMixin, PPO):
    """PPO as RLlib ships it; the only addition is the curriculum's state in its checkpoints."""


class StockPPOConfig(LoopbackLearnersMixin, PPOConfig):
    """RLlib's PPO settings for `StockPPO`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or StockPPO)
