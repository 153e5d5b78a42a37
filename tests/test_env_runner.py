"""The batched env runner: what it plays, what it counts, what it carries from state to state."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from toolagent.envs.registration import env_id, register_with_rllib
from toolagent.envs.single import ToolEnv
from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.models.rl_module import NetworkModule
from toolagent.rollouts.env_runner import EXPLORERS, BatchedEnvRunner
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.recorder import Recording
from toolagent.tasks.tokens import ANS

GROUPS = {"group_size": 8, "failed_problem_share": 0.8, "explorer_kind": "detours"}


def make_runner(worker_index=0, seed=0, evaluation=False, episodes=64, training=None, **env_config):
    register_with_rllib()
    config = (
        ToolAgentConfig()
        .environment(
            env_id("calculator"),
            env_config={"task": "calculator", "stage": 2, "earlier_stage_share": 0.5} | env_config,
        )
        .env_runners(num_envs_per_env_runner=episodes)
        .training(**(training or {}))
        .framework("torch")
        .debugging(seed=seed)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=NetworkModule,
                model_config={"task": "calculator", "embedding_size": 16},
            )
        )
    )
    config.in_evaluation = evaluation
    runner = BatchedEnvRunner(config=config, worker_index=worker_index)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)  # the same, decided policy in every runner
        for parameter in runner.module.network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return runner


def same(one, other):
    return all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(one.columns(), other.columns(), strict=True)
    )


def test_a_sample_is_as_many_whole_episodes_as_were_asked_for():
    runner = make_runner()
    assert [len(runner.sample()), len(runner.sample(num_episodes=7))] == [64, 7]
    batch = runner.sample(num_episodes=300)
    assert (batch.lengths >= 1).all() and (batch.lengths <= 7).all()
    after = np.arange(7) >= batch.lengths[:, None]
    assert (batch.actions[after] == ANS).all() and not batch.rewards[after].any()
    assert set(batch.stage.tolist()) == {0, 1, 2}
    assert abs((batch.stage < 2).mean() - 0.5) < 0.15  # earlier_stage_share


@pytest.mark.parametrize("env_steps", [1, 7, 8, 100, 3000])
def test_steps_are_asked_for_and_whole_episodes_come(env_steps):
    batch = make_runner().sample(num_timesteps=env_steps)
    assert env_steps <= batch.env_steps < env_steps + 7  # one episode more would be too many
    assert (batch.lengths >= 1).all()
    with pytest.raises(ValueError, match="can't both be given"):
        make_runner().sample(num_timesteps=100, num_episodes=100)


def test_rllib_s_look_at_single_episodes():
    batch = make_runner().sample(num_episodes=9)
    assert [episode.env_steps() for episode in batch] == batch.lengths.tolist()
    assert [episode.agent_steps() for episode in batch] == batch.lengths.tolist()


def test_exploring_draws_and_greedy_play_takes_the_most_probable_token():
    runner = make_runner()
    greedy = runner.sample(num_episodes=400, explore=False)
    assert not greedy.log_probabilities.any()
    # A greedy agent's action depends on the problem alone: the first one on the context.
    first = {}
    for context, action in zip(greedy.context.tolist(), greedy.actions[:, 0].tolist(), strict=True):
        assert first.setdefault(tuple(context), action) == action
    explored = runner.sample(num_episodes=400)
    assert (explored.log_probabilities[:, 0] < 0).all()
    assert len(set(explored.actions[:, 0].tolist())) > len(set(greedy.actions[:, 0].tolist()))
    runner.config.explore = False
    assert not runner.sample().log_probabilities.any()


class Called(RLlibCallback):
    """Keeps what it is called with."""

    def __init__(self):
        self.environments, self.samples = [], []

    def on_environment_created(self, *, env_runner, metrics_logger, env, env_context, **kwargs):
        self.environments.append((env_runner, metrics_logger, env, env_context["stage"]))

    def on_sample_end(self, *, env_runner, metrics_logger, samples, **kwargs):
        metrics_logger.log_value("solved_share", float(samples.solved.mean()))
        self.samples.append(samples)


def test_callbacks_are_called_with_the_environment_and_with_each_batch():
    by_function = []
    config = make_runner().config.copy(copy_frozen=False)
    config.callbacks(
        callbacks_class=Called,
        on_sample_end=lambda **arguments: by_function.append(arguments["samples"]),
    )
    runner = BatchedEnvRunner(config=config, worker_index=1)
    (called,) = runner._callbacks
    assert called.environments == [(runner, runner.metrics, runner.env, 2)]
    batches = [runner.sample(), runner.sample(num_episodes=3), runner.sample(num_timesteps=500)]
    assert [id(batch) for batch in called.samples] == [id(batch) for batch in batches]
    assert [id(batch) for batch in by_function] == [id(batch) for batch in batches]
    assert "solved_share" in runner.get_metrics()


def test_a_restored_state_continues_both_random_streams_exactly():
    runner = make_runner()
    runner.sample()
    state = runner.get_state()
    expected = [runner.sample() for _ in range(2)]
    other = make_runner(seed=99)
    other.set_state(state)
    assert all(same(other.sample(), batch) for batch in expected)
    assert other.num_env_steps_sampled_lifetime == runner.num_env_steps_sampled_lifetime


def test_another_runner_s_state_brings_everything_but_its_random_streams():
    state = make_runner(worker_index=0).get_state() | {"stage": 1}
    runner, twin = make_runner(worker_index=3), make_runner(worker_index=3)
    runner.set_state(state)
    twin.set_stage(1)
    assert runner.env.stage == 1
    assert same(runner.sample(), twin.sample())


# Groups, failed problems and explorers -------------------------------------------------------


def experienced_runner(solved=0.9, **kwargs):
    """A runner with failed problems, told that its policy solves most of the fresh ones."""
    runner = make_runner(training=GROUPS, **kwargs)
    runner.set_state({EXPLORERS: (0.25, np.zeros((runner.env.task.num_statuses, 18)))})
    runner.sample(num_episodes=8 * 800)
    state = runner.get_state()
    assert state["failed_problems"]["added"] > 256
    runner.set_state({**state, "failed_problems": {**state["failed_problems"], "solved": solved}})
    return runner


def test_a_group_is_one_problem_and_knows_how_its_others_went():
    runner = make_runner(training=GROUPS)
    batch = runner.sample(num_episodes=400)
    assert not batch.explored.any()  # the algorithm has asked for none
    contexts = batch.context.reshape(50, 8, -1)
    assert (contexts == contexts[:, :1]).all()
    assert len(np.unique(contexts[:, 0], axis=0)) > 40
    returns = batch.returns
    for row in range(400):
        others = [other for other in range(row // 8 * 8, row // 8 * 8 + 8) if other != row]
        assert batch.baseline[row] == pytest.approx(returns[others].mean(), abs=1e-6)
    assert batch.baseline.any()
    assert len(np.unique(batch.actions[:8], axis=0)) > 1  # one problem, not one episode


@pytest.mark.parametrize(
    "how", [{"explore": False}, {"random_actions": True}, {"evaluation": True}]
)
def test_where_nothing_is_learned_there_are_no_groups_explorers_or_failed_problems(how):
    runner = experienced_runner()
    runner.config.in_evaluation = how.get("evaluation", False)
    how = {name: value for name, value in how.items() if name != "evaluation"}
    before = runner.get_state()["failed_problems"]
    batch = runner.sample(num_episodes=400, **how)
    assert not batch.explored.any() and not batch.baseline.any()
    neighbours = (batch.context[1:] == batch.context[:-1]).all(1)
    assert neighbours.mean() < 0.1
    after = runner.get_state()["failed_problems"]
    assert same(before.pop("ring"), after.pop("ring")) and before == after


def test_failed_problems_are_played_again_by_the_policy():
    runner = experienced_runner()
    state = runner.get_state()["failed_problems"]
    known = {tuple(context) for context in state["ring"].context[: state["added"]].tolist()}
    batch = runner.sample(num_episodes=800)
    policy = batch.take(~batch.explored)
    assert len(policy) == 600
    again = [tuple(context) in known for context in policy.context[::8].tolist()]
    current = policy.stage[::8] == 2
    assert 0.5 < np.mean(np.array(again)[current]) < 0.9  # 0.8 * 0.9


def test_explorers_on_detours_are_counted_but_their_returns_are_not():
    runner = experienced_runner()
    runner.get_metrics()
    batch = runner.sample(num_episodes=400)
    assert batch.explored.tolist() == [False] * 304 + [True] * 96
    metrics = runner.get_metrics()
    assert metrics["num_env_steps_sampled"].peek() == batch.env_steps
    assert metrics["num_episodes"].peek() == 400
    policy = batch.take(~batch.explored)
    assert metrics["episode_len_mean"].peek() == pytest.approx(policy.lengths.mean())


def test_a_restored_state_continues_with_its_failed_problems_exactly():
    runner = experienced_runner()
    state = runner.get_state()
    expected = [runner.sample(num_episodes=160) for _ in range(3)]
    other = make_runner(seed=99, training=GROUPS)
    other.set_state({EXPLORERS: (0.25, np.zeros((runner.env.task.num_statuses, 18)))} | state)
    assert all(same(other.sample(num_episodes=160), batch) for batch in expected)
    one, two = (side.get_state()["failed_problems"] for side in (runner, other))
    assert same(one.pop("ring"), two.pop("ring")) and one == two


def test_another_runner_s_failed_problems_stay_its_own():
    state = experienced_runner(worker_index=1).get_state()
    runner = make_runner(worker_index=2, training=GROUPS)
    runner.set_state(state)
    assert runner.get_state()["failed_problems"]["added"] == 0


def weights_of(runner, add=0.0):
    return {
        DEFAULT_MODULE_ID: {
            name: value + add
            for name, value in runner.module.get_state(inference_only=True).items()
        }
    }


@pytest.mark.parametrize(
    ("number", "taken", "then"),
    [(5, False, 5), (4, False, 5), (6, True, 6), (0, True, 5), (None, True, 5)],
    ids=["as new", "older", "newer", "0 forces", "no number forces"],
)
def test_only_newer_weights_are_taken(number, taken, then):
    runner = make_runner()
    runner.set_state({COMPONENT_RL_MODULE: weights_of(runner), WEIGHTS_SEQ_NO: 5})
    before = runner.module.network.value_head.bias.item()
    state = {COMPONENT_RL_MODULE: weights_of(runner, add=1.0)}
    if number is not None:
        state[WEIGHTS_SEQ_NO] = number
    runner.set_state(state)
    assert runner.module.network.value_head.bias.item() == pytest.approx(before + taken)
    # A number always belongs to the weights that are there.
    assert runner.get_state()[WEIGHTS_SEQ_NO] == then


def test_after_a_restore_older_weights_are_taken_too():
    runner = make_runner()
    runner.set_state({COMPONENT_RL_MODULE: weights_of(runner), WEIGHTS_SEQ_NO: 5})
    before = runner.module.network.value_head.bias.item()
    runner.expect_any_weights()
    runner.set_state({COMPONENT_RL_MODULE: weights_of(runner, add=1.0), WEIGHTS_SEQ_NO: 3})
    assert runner.module.network.value_head.bias.item() == pytest.approx(before + 1)
    assert runner.get_state()[WEIGHTS_SEQ_NO] == 3


def test_state_can_be_asked_for_without_weights():
    runner = make_runner()
    assert COMPONENT_RL_MODULE in runner.get_state()
    state = runner.get_state(not_components=COMPONENT_RL_MODULE)
    assert COMPONENT_RL_MODULE not in state and "problem_stream" in state


def test_metrics_are_true_of_the_batches():
    runner = make_runner()
    batch = EpisodeBatch.concatenate([runner.sample(), runner.sample()])
    metrics = {name: metric for name, metric in runner.get_metrics().items()}

    def value(name):
        return metrics[name].peek()

    assert value("num_env_steps_sampled") == value("num_env_steps_sampled_lifetime")
    assert value("num_env_steps_sampled") == batch.env_steps
    assert value("num_episodes") == value("num_episodes_lifetime") == 128
    assert value("episode_return_mean") == pytest.approx(batch.returns.mean(), rel=1e-5)
    assert value("episode_return_max") == pytest.approx(batch.returns.max(), rel=1e-5)
    assert value("episode_return_min") == pytest.approx(batch.returns.min(), rel=1e-5)
    assert value("episode_len_mean") == pytest.approx(batch.lengths.mean())
    assert value("episode_len_max") == batch.lengths.max()
    assert value("episode_len_min") == batch.lengths.min()
    # Sums begin again, counts of a lifetime go on.
    third = runner.sample(num_episodes=10)
    metrics = runner.get_metrics()
    assert metrics["num_env_steps_sampled"].peek() == third.env_steps
    assert runner.num_env_steps_sampled_lifetime == batch.env_steps + third.env_steps


def test_no_two_runners_and_no_two_seeds_share_a_stream():
    samples = {
        (seed, worker, evaluation): make_runner(worker, seed, evaluation).sample(num_episodes=200)
        for seed in (0, 1, 2)
        for worker in (0, 1, 2)
        for evaluation in (False, True)
    }
    keys = list(samples)
    for index, key in enumerate(keys):
        for other in keys[:index]:
            for column in ("context", "actions"):
                rows = np.asarray(getattr(samples[key], column))
                others = np.asarray(getattr(samples[other], column))
                assert (rows == others).all(1).mean() < 0.1, (key, other, column)
    assert same(make_runner(1, 2).sample(num_episodes=200), samples[2, 1, False])


def test_runners_without_a_seed_differ():
    assert not same(make_runner(seed=None).sample(), make_runner(seed=None).sample())


def test_spaces_are_those_of_one_environment_and_of_the_batch():
    runner = make_runner()
    spaces = runner.get_spaces()
    single = ToolEnv("calculator")
    assert spaces[INPUT_ENV_SINGLE_SPACES] == (single.observation_space, single.action_space)
    assert spaces[DEFAULT_MODULE_ID] == spaces[INPUT_ENV_SINGLE_SPACES]
    assert spaces[INPUT_ENV_SPACES][1].shape == (64,)
    runner.assert_healthy()


def test_what_a_runner_samples_is_recorded(tmp_path):
    recording = Recording(str(tmp_path / "episodes"), "run-1").to_dict()
    runner = make_runner(recording=recording)
    assert make_runner(recording=recording, evaluation=True).recorder is None
    batch = EpisodeBatch.concatenate([runner.sample(), runner.sample(num_episodes=20)])
    runner.stop()
    [file] = (tmp_path / "episodes" / "task=calculator").iterdir()
    assert file.suffix == ".parquet"
    rows = pq.read_table(file, partitioning=None).to_pylist()
    assert len(rows) == len(batch) == 84
    for number, row in enumerate(rows):  # that they replay is tested with the recorder
        length = int(batch.lengths[number])
        assert row["actions"] == batch.actions[number, :length].tolist()
        assert row["solved"] == batch.solved[number]
        assert len(row["log_probabilities"]) == len(row["values"]) == length
    json.dumps(rows)  # plain values all through
