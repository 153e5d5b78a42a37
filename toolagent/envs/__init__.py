"""Environments: the single and the vector view of a task's machine, and their registration."""

from toolagent.envs.registration import (
    env_id,
    register_task,
    register_with_gymnasium,
    register_with_rllib,
)

__all__ = ["env_id", "register_task", "register_with_gymnasium", "register_with_rllib"]
