"""TorchRL's PPO: its collector, its GRU module, its advantages and its loss."""

# The library may be missing where types are checked, and its own types are loose.
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import (
    Binary,
    Categorical,
    Composite,
    Unbounded,
)
from torchrl.envs import (
    EnvBase,
    InitTracker,
    TransformedEnv,
)
from torchrl.modules import (
    GRUModule,
    ProbabilisticActor,
    set_recurrent_mode,
)
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from toolagent.benchmark.peers import HIDDEN_SIZE
from toolagent.benchmark.peers.base import Peer, PeerEnvironment

_LOSSES = ("loss_objective", "loss_critic", "loss_entropy")


class _Env(EnvBase):
    """The environments as one batched environment."""

    def __init__(self, environment: PeerEnvironment):
        envs = environment.num_envs
        super().__init__(device="cpu", batch_size=(envs,))
        self._environment = environment
        self._observation: Tensor | None = None
        size = (envs, environment.observation_size)
        self.observation_spec = Composite(observation=Unbounded(size), shape=(envs,))
        self.action_spec = Categorical(environment.num_actions, (envs,))
        self.reward_spec = Unbounded((envs, 1))
        self.done_spec = Binary(1, (envs, 1), dtype=torch.bool)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        # Where episodes ended the environment has begun new ones already.
        if self._observation is None:
            self._observation = self._environment.reset()
        return TensorDict({"observation": self._observation}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._observation, rewards, ended = self._environment.step(tensordict["action"].numpy())
        done = torch.from_numpy(ended).unsqueeze(1)
        columns = {
            "observation": self._observation,
            "reward": torch.from_numpy(rewards).unsqueeze(1),
            "done": done,
            "terminated": done,
        }
        return TensorDict(columns, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """The environment has its seed."""


class TorchRL(Peer):
    """The row `torchrl_ppo`."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "num_envs": 640,
        "steps": 8,
        "batch_size": 1280,
        "epochs": 1,
        "lr": 3e-3,
        "entropy_coeff": 0.03,
        "gamma": 1.0,
        "lmbda": 0.95,
        "critic_coeff": 0.5,
        "grad_clip": 1.0,
    }
    state_size = HIDDEN_SIZE

    def __init__(self, environment: PeerEnvironment, settings: Mapping[str, Any], seed: int):
        self._settings = settings
        self._gru = GRUModule(
            environment.observation_size,
            HIDDEN_SIZE,
            in_keys=["observation", "recurrent_state", "is_init"],
            out_keys=["features", ("next", "recurrent_state")],
        )
        self._head = nn.Linear(HIDDEN_SIZE, environment.num_actions)
        actor = ProbabilisticActor(
            TensorDictSequential(self._gru, TensorDictModule(self._head, ["features"], ["logits"])),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
            return_log_prob=True,
        )
        # Reads the features that the actor has computed, with their gradient.
        value = TensorDictModule(nn.Linear(HIDDEN_SIZE, 1), ["features"], ["state_value"])
        env = TransformedEnv(_Env(environment), InitTracker())
        env.append_transform(self._gru.make_tensordict_primer())
        frames = environment.num_envs * int(settings["steps"])
        collector = Collector(env, actor, frames_per_batch=frames, total_frames=-1)
        self._batches = iter(collector)
        self._advantages = GAE(
            gamma=settings["gamma"],
            lmbda=settings["lmbda"],
            value_network=TensorDictSequential(self._gru, value),
            average_gae=True,
            shifted=True,
        )
        self._loss = ClipPPOLoss(
            actor,
            value,
            entropy_coeff=settings["entropy_coeff"],
            critic_coeff=settings["critic_coeff"],
            loss_critic_type="l2",
        )
        self._optimizer = torch.optim.Adam(self._loss.parameters(), lr=settings["lr"])

    def update(self) -> int:
        """A batch of the collector (N, T), and epochs of minibatches of whole rows of it."""
        batch = next(self._batches)
        with set_recurrent_mode(True):
            with torch.no_grad():
                self._advantages(batch)
            rows = max(1, int(self._settings["batch_size"]) // batch.shape[1])
            for _ in range(int(self._settings["epochs"])):
                for part in torch.randperm(batch.shape[0]).split(rows):
                    losses = self._loss(batch[part])
                    self._optimizer.zero_grad()
                    loss = sum(losses[name] for name in _LOSSES)
                    loss.backward()
                    nn.utils.clip_grad_norm_(
                        self._loss.parameters(), float(self._settings["grad_clip"])
                    )
                    self._optimizer.step()
        return batch.numel()

    @torch.no_grad()
    def policy(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The GRU's policy (see `Peer`)."""
        outputs, last = self._gru.gru(observation.unsqueeze(1), state.unsqueeze(0).contiguous())
        return self._head(outputs.squeeze(1)), last[0]


PEER = TorchRL
