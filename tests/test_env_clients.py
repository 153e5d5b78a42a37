"""Other libraries' learners take the environments as they are: each id, each stage.

`check_env` looks at the spaces; only a learner encodes them.
"""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

import toolagent  # noqa: F401  (registers the ids)
from toolagent.envs import env_id, register_with_rllib
from toolagent.tasks import TASKS, get_task

pytest.importorskip("sb3_contrib", reason="needs the extra dev")

from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.torch_layers import CombinedExtractor

STEPS = 200
STAGES = [(name, stage) for name in TASKS for stage in get_task(name).stages]


class Features(CombinedExtractor):
    """Its width as a Python integer: of any `MultiDiscrete` Stable-Baselines3 makes NumPy's, which
    torch's LSTM refuses since 2.13."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self._features_dim = int(self._features_dim)


NETWORK = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
SB3_LEARNERS = {
    "PPO": lambda env: PPO(
        "MultiInputPolicy", env, n_steps=STEPS // 2, batch_size=50, n_epochs=1, **NETWORK
    ),
    "DQN": lambda env: DQN(
        "MultiInputPolicy", env, buffer_size=STEPS, learning_starts=20, train_freq=20, **NETWORK
    ),
    "RecurrentPPO": lambda env: RecurrentPPO(
        "MultiInputLstmPolicy",
        env,
        n_steps=STEPS // 2,
        batch_size=50,
        n_epochs=1,
        device="cpu",
        seed=0,
        policy_kwargs={
            "net_arch": [8],
            "lstm_hidden_size": 8,
            "features_extractor_class": Features,
        },
    ),
}


# The first and the last stage are where an index that is off by one shows.
ENDS = [
    pytest.param(
        name,
        stage,
        marks=pytest.mark.full
        if stage in (get_task(name).stages[0], get_task(name).stages[-1])
        else pytest.mark.slow,
    )
    for name, stage in STAGES
]


@pytest.mark.parametrize("learner", SB3_LEARNERS)
@pytest.mark.parametrize(("name", "stage"), ENDS)
def test_stable_baselines_takes_every_stage(learner, name, stage):
    env = gym.make(env_id(name), stage=stage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    agent = SB3_LEARNERS[learner](env)
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    agent.learn(STEPS)
    assert agent.num_timesteps >= STEPS
    after = agent.policy.state_dict()
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


def rllib_ppo():
    return (
        PPOConfig()
        .env_runners(rollout_fragment_length=25)
        .training(train_batch_size=STEPS // 2, minibatch_size=50, num_epochs=1)
    )


def rllib_dqn():
    replay = {"type": "PrioritizedEpisodeReplayBuffer", "capacity": STEPS}
    return (
        DQNConfig()
        .training(
            train_batch_size=32,
            num_steps_sampled_before_learning_starts=20,
            replay_buffer_config=replay,
        )
        .reporting(min_sample_timesteps_per_iteration=STEPS // 2)
    )


def rllib_takes(make_config, name, stage, vectorization):
    """RLlib's own learner, network and env runner; of toolagent the environment only."""
    register_with_rllib()
    config = (
        make_config()
        .environment(env_id(name), env_config={"stage": stage})  # the id alone tells the task
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=4,
            gym_env_vectorize_mode=vectorization,
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
        )
        .learners(num_learners=0)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        before = algorithm.get_module().get_state()
        steps = 0
        while steps < STEPS:
            result = algorithm.train()
            steps = result["env_runners"]["num_env_steps_sampled_lifetime"]
        after = algorithm.get_module().get_state()
        assert not all(np.array_equal(before[key], after[key]) for key in before)
        assert all(np.isfinite(value).all() for value in after.values())
    finally:
        algorithm.stop()


@pytest.mark.full
# The last of eight stages and the first that is not 0: where an index that is off by one shows.
@pytest.mark.parametrize(
    ("make_config", "stage", "vectorization"),
    [(rllib_ppo, 8, "vector_entry_point"), (rllib_dqn, 1, "sync")],
)
def test_rllib_takes_the_first_and_the_last_stage(cluster, make_config, stage, vectorization):
    rllib_takes(make_config, "expression", stage, vectorization)


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["vector_entry_point", "sync"])
@pytest.mark.parametrize("make_config", [rllib_ppo, rllib_dqn])
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_rllib_takes_every_stage(cluster, make_config, name, stage, vectorization):
    rllib_takes(make_config, name, stage, vectorization)
