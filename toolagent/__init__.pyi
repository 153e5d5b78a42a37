# What `import toolagent` offers, for type checkers; `__init__.py` imports the most of it lazily.
from toolagent.api.agent import Agent as Agent
from toolagent.api.agent import AgentState as AgentState
from toolagent.api.agent import Episode as Episode
from toolagent.api.agent import EpisodeStep as EpisodeStep
from toolagent.api.agent import load_agent as load_agent
from toolagent.api.certification import certify as certify
from toolagent.api.training import Run as Run
from toolagent.api.training import train as train
from toolagent.envs import register_task as register_task

__version__: str
