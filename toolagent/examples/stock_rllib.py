"""RLlib's own PPO on a toolagent environment, without the toolagent pipeline.

    python -m toolagent.examples.stock_rllib

It prints the mean return of some iterations, which takes half a minute.
"""

import sys

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from toolagent.cluster.ray_session import cluster_to_join, ray_session
from toolagent.envs.registration import register_with_rllib
from toolagent.models.rl_module import NetworkModule


def main(iterations: int = 10) -> None:
    """Trains on stage 0, `a*b+c`; a right answer's return is 1.1 or more."""
    register_with_rllib()  # the ids of all tasks, as Gymnasium knows them
    network = RLModuleSpec(
        module_class=NetworkModule, model_config={"task": "calculator", "max_seq_len": 8}
    )
    config = (
        PPOConfig()
        .environment("toolagent/Calculator-v0", env_config={"task": "calculator", "stage": 0})
        .env_runners(
            gym_env_vectorize_mode="vector_entry_point",  # the native vector environment
            num_env_runners=1,
            num_envs_per_env_runner=64,
        )
        .rl_module(rl_module_spec=network)
        .training(train_batch_size_per_learner=4096, minibatch_size=512, num_epochs=4, lr=2e-3)
        .debugging(seed=0, log_level="CRITICAL")
    )
    # As `ray.init()` and `ray.shutdown()`: a cluster of this machine, quiet and off the network.
    with ray_session(cluster_to_join("local"), dashboard=False):
        algorithm = config.build_algo()
        for iteration in range(iterations):
            mean = algorithm.train()["env_runners"]["episode_return_mean"]
            print(f"iteration {iteration + 1}: mean return {mean:.3f}", flush=True)
        algorithm.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
