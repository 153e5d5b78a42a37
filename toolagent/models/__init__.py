"""The model: a plain torch network, and the RLlib module around it."""

from toolagent.models.base import AgentNetwork, InitialState

__all__ = ["AgentNetwork", "InitialState"]
