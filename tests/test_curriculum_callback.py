"""The curriculum inside RLlib: stock PPO with local, remote and evaluation env runners."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from toolagent.config import build_algorithm_config, load_settings
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback, _set_stage

# Three levels that are each left after one iteration; a fast training step around them.
OVERRIDES = (
    "curriculum.levels=[{stage: 0, advance_after_iterations: 1}, "
    "{stage: 1, advance_after_iterations: 1}, {stage: 2}]",
    "curriculum.earlier_stage_share=0",
    "curriculum.measure_problems=50",
    "env_runners.num_env_runners=1",
    "env_runners.num_envs_per_env_runner=4",
    "env_runners.create_env_on_local_worker=true",
    "env_runners.num_cpus_per_env_runner=0.5",
    "fault_tolerance.delay_between_env_runner_restarts_s=0.1",
    "evaluation.evaluation_interval=100",
    "evaluation.evaluation_num_env_runners=1",
    "training.train_batch_size_per_learner=32",
    "training.minibatch_size=32",
    "training.num_epochs=1",
    "rl_module.model_config.embedding_size=16",
)


def build():
    settings = load_settings("ppo", OVERRIDES)
    return build_algorithm_config(settings).build_algo()


def callback_of(algorithm):
    (callback,) = (c for c in algorithm.callbacks if isinstance(c, CurriculumCallback))
    return callback


def groups(algorithm):
    return algorithm.env_runner_group, algorithm.eval_env_runner_group


def stages_of(algorithm):
    """The stage of every env: local and remote runner, then those for evaluation."""
    return [
        group.foreach_env_runner(
            lambda runner: None if runner.env is None else runner.env.unwrapped.stage,
            local_env_runner=True,
        )
        for group in groups(algorithm)
    ]


def played_stages(group):
    """The stages in the observations of 20 episodes of each remote runner."""
    return group.foreach_env_runner(
        lambda runner: [
            int(episode.get_observations(index)["stage"])
            for episode in runner.sample(num_episodes=20, random_actions=True)
            for index in range(len(episode) + 1)
        ],
        local_env_runner=False,
    )


class Trained:
    """An algorithm that went through its three levels, and what was seen on the way."""

    def __init__(self):
        self.algorithm = build()
        self.callback = callback_of(self.algorithm)
        self.stages = [stages_of(self.algorithm)]
        self.results = []
        for _ in range(3):
            self.results.append(self.algorithm.train()[CURRICULUM])
            self.stages.append(stages_of(self.algorithm))


@pytest.fixture(scope="module")
def trained(cluster):
    trained = Trained()
    yield trained
    trained.algorithm.stop()


def flat(stages):
    return [stage for group in stages for stage in group if stage is not None]


def test_every_runner_has_the_present_stage(trained):
    for stages, expected in zip(trained.stages, (0, 1, 2, 2), strict=True):
        training, evaluation = stages
        assert training == [expected, expected]  # the local and the remote one
        assert evaluation[-1] == expected
        assert set(flat(stages)) == {expected}


def test_results_say_what_was_trained_what_comes_and_why(trained):
    assert [row["stage"] for row in trained.results] == [0, 1, 2]
    assert [row["next_stage"] for row in trained.results] == [1, 2, 2]
    assert [row["level"] for row in trained.results] == [1, 2, 2]
    assert [row["reason"] for row in trained.results] == [
        "1 iterations on stage 0",
        "1 iterations on stage 1",
        None,
    ]
    for row in trained.results:
        assert row["measured"]
        assert list(row["accuracy"]) == ["0", "1", "2"]
        assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"].values())


def test_what_is_measured_is_the_learners_network(trained):
    weights = trained.algorithm.learner_group.get_weights()["default_policy"]
    network = trained.callback.refresh_network(trained.algorithm).state_dict()
    assert len(network) > 5
    for name, tensor in network.items():
        np.testing.assert_array_equal(tensor.numpy(), weights[f"network.{name}"])


def test_episodes_carry_the_stage_that_they_were_played_on(trained):
    for group in groups(trained.algorithm):
        for stages in played_stages(group):
            assert len(stages) >= 20
            assert set(stages) == {2}


def test_a_recreated_runner_is_told_the_stage_again(trained):
    group = trained.algorithm.env_runner_group

    def pids():
        return group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)

    (before,) = pids()
    ray.kill(group._worker_manager.actors()[1], no_restart=False)
    deadline = time.monotonic() + 120.0  # a busy machine takes long to start a process
    while pids() in ([], [before]) and time.monotonic() < deadline:
        trained.algorithm.train()
    (after,) = pids()
    assert after != before
    assert trained.callback.stage == 2  # no change of the stage sent it along
    assert set(flat(stages_of(trained.algorithm))) == {2}
    assert set(played_stages(group)[0]) == {2}


@pytest.mark.full
def test_the_state_is_part_of_the_algorithms_checkpoint(trained, tmp_path):
    path = str(tmp_path / "checkpoint")
    trained.algorithm.save_to_path(path)
    saved = trained.callback.get_state()
    assert saved["curriculum"]["level"] == 2
    restored = build()
    try:
        assert set(flat(stages_of(restored))) == {0}
        restored.restore_from_path(path)
        callback = callback_of(restored)
        assert callback.get_state() == saved
        assert callback.stage == 2
        assert set(flat(stages_of(restored))) == {2}
        result = restored.train()[CURRICULUM]
        assert (result["stage"], result["next_stage"], result["reason"]) == (2, 2, None)
        assert callback.state == trained.callback.state
    finally:
        restored.stop()


def test_a_state_beyond_the_declared_levels_is_refused(trained):
    state = trained.callback.get_state()
    state["curriculum"] = {**state["curriculum"], "level": 3}
    before = trained.callback.get_state()
    with pytest.raises(ValueError, match="level 3; the settings have 3 levels"):
        trained.callback.set_state(state, trained.algorithm)
    assert trained.callback.get_state() == before


@pytest.mark.parametrize("vectorization", ["vector_entry_point", "sync"])
def test_rllibs_own_runner_is_told_the_stage(vectorization):
    vectorize = f"env_runners.gym_env_vectorize_mode={vectorization}"
    settings = load_settings("ppo", (*OVERRIDES, "env_runners.num_env_runners=0", vectorize))
    runner = SingleAgentEnvRunner(config=build_algorithm_config(settings), worker_index=0)
    group = SimpleNamespace(foreach_env_runner=lambda apply, **kwargs: apply(runner))
    _set_stage(group, 2)
    assert runner.env.reset()[0]["stage"].tolist() == [2] * 4
    runner.stop()
