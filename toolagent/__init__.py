"""toolagent: small model-native agents, trained by distributed reinforcement learning on Ray.

Importing the package registers the Gymnasium ids `toolagent/Tutorial-v0`,
`toolagent/Calculator-v0` and `toolagent/Expression-v0`; it loads neither Ray nor torch.
"""

import os
from pathlib import Path

from toolagent.envs import register_task, register_with_gymnasium

__version__ = "0.1.0"

try:
    Path.home()
except RuntimeError:  # no HOME, and a user without an entry, as containers have
    os.environ["HOME"] = "/"  # as login has it; Ray can't be imported without one

register_with_gymnasium()

__all__ = ["register_task"]
