"""toolagent: small model-native agents, trained by distributed reinforcement learning on Ray.

Importing the package registers the Gymnasium ids `toolagent/Tutorial-v0`,
`toolagent/Calculator-v0` and `toolagent/Expression-v0`; it loads neither Ray nor torch.

The functions for programs and notebooks are `train`, `load_agent`, `certify` and `register_task`;
all but the last are imported when they are first used.
"""

import importlib
import os
from pathlib import Path
from typing import Any

from toolagent.envs import register_task, register_with_gymnasium

__version__ = "0.1.0"

try:
    Path.home()
except RuntimeError:  # no HOME, and a user without an entry, as containers have
    os.environ["HOME"] = "/"  # as login has it; Ray can't be imported without one

register_with_gymnasium()

# Where each of the other names is; `__init__.pyi` tells type checkers.
_MODULES = {
    "Agent": "toolagent.api.agent",
    "AgentState": "toolagent.api.agent",
    "Episode": "toolagent.api.agent",
    "EpisodeStep": "toolagent.api.agent",
    "Run": "toolagent.api.training",
    "certify": "toolagent.api.certification",
    "load_agent": "toolagent.api.agent",
    "train": "toolagent.api.training",
}

__all__ = ["register_task"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'toolagent' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
