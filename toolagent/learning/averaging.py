"""Several learners average their gradients in one message."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchDDPRLModule, TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor, distributed

from toolagent.phases import timed


class AveragingLearner(TorchLearner):
    """Averages all gradients at once, behind the backward pass.

    RLlib leaves it to torch's DistributedDataParallel, which sends gradients while the backward
    pass goes on. For that it prepares each pass, and handles each parameter as its gradient comes:
    more work than a small network's whole message, and no time is gained, since a network below
    its bucket's 1 MB is sent at the end all the same.
    """

    config: Any  # RLlib types its settings as what they may be before they are set

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """As in RLlib, which begins all learners with the first one's weights."""
        if self.config.num_learners > 1:
            modules: Any = self._module
            for module_id, module in list(modules.items()):
                if isinstance(module, TorchRLModule):
                    same_weights = _SameWeights(module, **self.config.torch_ddp_kwargs)
                    modules.add_module(module_id, same_weights, override=True)

    @override(TorchLearner)
    def compute_gradients(
        self, loss_per_module: dict[str, Any], **kwargs: Any
    ) -> dict[Any, Tensor | None]:
        """RLlib's; of several learners, the mean of all."""
        gradients: Any = super().compute_gradients(loss_per_module, **kwargs)
        if self.config.num_learners > 1 and gradients:
            return averaged(gradients)
        return gradients


class _SameWeights(TorchDDPRLModule):
    """A module that has the same weights in all learners; its gradients are left alone."""

    @override(TorchDDPRLModule)
    def _forward_train(self, *args: Any, **kwargs: Any) -> Any:
        return self.unwrapped().forward_train(*args, **kwargs)


@timed("average gradients")
def averaged(gradients: dict[Any, Tensor | None]) -> dict[Any, Tensor | None]:
    """The means over all members of the process group.

    Args:
        gradients: by parameter, in the same order in all members. A parameter that has none here
            may have one elsewhere, and counts as 0; one that is not trained has none anywhere.
    """
    trained = {
        parameter: torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in gradients.items()
        if parameter.requires_grad
    }
    message = torch.cat([gradient.reshape(-1) for gradient in trained.values()])
    distributed.all_reduce(message)
    message /= distributed.get_world_size()
    parts = message.split([gradient.numel() for gradient in trained.values()])
    return gradients | {
        parameter: part.view_as(parameter) for parameter, part in zip(trained, parts, strict=True)
    }
