"""toolagent: small model-native agents, trained by distributed reinforcement learning on Ray.

Importing the package registers the Gymnasium ids `toolagent/Tutorial-v0` and
`toolagent/Calculator-v0`; it loads neither Ray nor torch.
"""

from toolagent.envs import register_with_gymnasium

__version__ = "0.1.0"

register_with_gymnasium()
