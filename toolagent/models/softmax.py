"""The softmax of short rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LANES = 16  # numbers of type float in a CPU's vector


def short_softmax(scores: Tensor) -> Tensor:
    """`torch.softmax` over the last dimension, of any shape.

    On a CPU torch's takes ten times as long for rows shorter than a vector of the processor: those
    are filled up.
    """
    length = scores.shape[-1]
    if length >= _LANES or scores.device.type != "cpu" or torch.compiler.is_exporting():
        return torch.softmax(scores, -1)
    filled = functional.pad(scores, (0, _LANES - length), value=-torch.inf)
    return torch.softmax(filled, -1)[..., :length]
