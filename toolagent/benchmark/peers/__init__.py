"""Recurrent PPO of other libraries on the calculator task, for `benchmark --peers`."""

# Name of the row -> (module in this package, package to import, what it is called).
PEERS: dict[str, tuple[str, str, str]] = {
    "sb3_recurrent_ppo": ("stable_baselines", "sb3_contrib", "Stable-Baselines3 contrib"),
    "torchrl_ppo": ("torch_rl", "torchrl", "TorchRL"),
    "skrl_ppo_rnn": ("skrl_ppo", "skrl", "skrl"),
}
HIDDEN_SIZE = 96  # of each recurrent layer: that of the default network
