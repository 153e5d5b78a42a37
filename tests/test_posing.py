"""A task that is posed by two values, one of which no context shows: wherever problems are given,
drawn or recorded."""

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from answering import PosedPeekTask
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from refusals import refusal
from test_responses import make_network
from test_serve_outside import http

from toolagent.api.agent import Agent
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.envs import env_id, register_task, register_with_rllib
from toolagent.errors import UserError
from toolagent.evaluate.problem_files import read_problems
from toolagent.learning.offline import OfflineBCConfig
from toolagent.learning.recorded_data import RecordedEpisodesData
from toolagent.models.rl_module import NetworkModule
from toolagent.rollouts.play import GivenTokens, PlayDetails, play
from toolagent.rollouts.recorder import EpisodeRecorder, Recording
from toolagent.rollouts.stock_recorder import batch_of_episodes, finished
from toolagent.serve.agents import Agents
from toolagent.serve.app import build_app
from toolagent.tasks import Task, get_task

pytestmark = pytest.mark.usefixtures("one_thread")

register_task(PosedPeekTask)
POSED = "answering:PosedPeekTask"
TASK = get_task(POSED)
HIDDEN = {POSED: "digits", "toolcall": "database"}  # the columns of problems
COLUMNS = ("stage", "context", "actions", "lengths", "rewards", "response")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posed")
    save_policy(folder, make_network("encoder_decoder"), POSED, env_steps=0, stages=())
    return load_policy(folder, task=POSED)


def recorded(folder, task=TASK, count=100, share=1.0):
    """Episodes that were played, and their problems; a share was recorded, in two batches.

    In every other episode the agent writes the task's own plan, where it has one.
    """
    rng = np.random.default_rng(0)
    problems = task.sample(rng, np.arange(count) % task.num_stages)
    given = np.full((count, task.max_actions), GivenTokens.FREE)
    for row in range(0, count, 2):
        plan = task.plan(problems, row) or ()
        given[row, : len(plan)] = plan
    details = PlayDetails.empty(count, task.max_actions)
    network = make_network("stage_gru", task=task)
    batch = play(network, task, problems, chooser=GivenTokens(given), observer=details)
    recorder = EpisodeRecorder(Recording(str(folder), "run-1", share=share), task, seed=0)
    for rows in np.split(np.arange(count), 2):
        recorder.add(batch.take(rows), details.take(rows), 1)
    recorder.flush()
    return batch, problems


@pytest.mark.parametrize(("name", "share"), [(POSED, 1.0), (POSED, 0.5), ("toolcall", 1.0)])
def test_a_recorded_episode_can_be_played_again_exactly(tmp_path, name, share):
    task = get_task(name)
    _, problems = recorded(tmp_path, task, share=share)
    (file,) = tmp_path.rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None).to_pylist()
    assert len(rows) == 100 if share == 1 else 20 < len(rows) < 80
    (unseen,) = task.unseen(problems)
    if share == 1:
        assert [row[unseen] for row in rows] == getattr(problems, HIDDEN[name]).tolist()
    env = gym.make(env_id(name)).unwrapped
    for row in rows:
        env.reset(options={key: row[key] for key in ("stage", *task.posed_by)})
        done = False
        for action, reward, response in zip(
            row["actions"], row["rewards"], row["response"], strict=True
        ):
            assert not done
            observation, found, terminated, truncated, info = env.step(action)
            assert (found, observation["response"].tolist()) == (reward, response)
            done = terminated or truncated
        assert done and info["solved"] == row["solved"]
    assert name != "toolcall" or sum(row["solved"] for row in rows) > 40


@pytest.mark.parametrize("name", [POSED, "toolcall"])
def test_cloning_learns_from_what_was_played(tmp_path, name):
    batch, _ = recorded(tmp_path, get_task(name))
    config = OfflineBCConfig().environment(env_config={"task": name})
    config.debugging(seed=0).offline_data(input_=str(tmp_path)).training(solved_only=False)
    data = RecordedEpisodesData(config)
    for column in COLUMNS:
        assert np.array_equal(getattr(data.episodes, column), getattr(batch, column)), column
    (drawn,) = data.sample(len(batch))
    columns = drawn[DEFAULT_MODULE_ID]
    width = int(batch.lengths.max())

    def sorted_rows(columns):
        parts = [columns["context"], columns["actions"][:, :width]]
        parts.append(columns["response"][:, :width].reshape(len(batch), -1))
        return sorted(np.concatenate([np.asarray(part) for part in parts], 1).tolist())

    assert sorted_rows(columns) == sorted_rows(dict(batch.columns()))


@pytest.mark.parametrize("vectorize_mode", ["vector_entry_point", "sync"])
def test_rllibs_own_runner_records_what_is_not_observed(vectorize_mode):
    register_with_rllib()
    options = {"task": POSED, "embedding_size": 8, "max_seq_len": 8}
    config = (
        PPOConfig()
        .environment(env_id(POSED), env_config={"stage": 1, "seed": 0})
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=3, gym_env_vectorize_mode=vectorize_mode
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=NetworkModule, model_config=options))
    )
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    try:
        under_way, episodes = {}, []
        for _ in range(4):
            episodes += finished(runner.sample(num_timesteps=30), under_way)
        batch, details = batch_of_episodes(episodes, TASK, runner.module.network)
    finally:
        runner.stop()
    hidden = details.unseen["hidden"]
    looked = (batch.actions == 3) & (np.arange(7) < batch.lengths[:, None])
    assert looked.any() and len(np.unique(hidden, axis=0)) > 2
    for row, step in np.argwhere(looked):
        assert batch.response[row, step].tolist() == hidden[row].tolist()


def test_files_of_problems(tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("hidden,asked\n1 2,both\n,first\n2 0,second\n")
    problems = read_problems(file, TASK)
    assert TASK.posing(problems)["asked"].tolist() == ["both", "first", "second"]
    assert problems.digits.tolist() == [[1, 2], [0, 0], [2, 0]]
    file.write_text("asked\nfirst\nboth\n")
    assert read_problems(file, TASK).digits.tolist() == [[0, 0]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden\n1 2\n", "line 1: no column 'asked'"),
        ("asked,hidden\nboth,1 2\n,1 2\n", "line 3: '' can't be asked"),
        ("asked,hidden\nboth,1 2\nboth,1 x\n", "line 3: hidden: 'x' is no number"),
        ("asked,hidden\nboth,1 2\nboth,1 2 0\n", "line 3: hidden: 3 numbers; expected 2"),
        ("asked,hidden\nboth,1 2\nboth,1 9\n", "line 3: hidden is"),
    ],
)
def test_files_that_cannot_be_posed(tmp_path, text, message):
    file = tmp_path / "problems.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_problems(file, TASK)


def test_an_agent_in_a_program(policy):
    agent = Agent(policy)
    assert agent.play(asked="second", hidden=[1, 2]).target == 2
    assert agent.play(asked="both").target == 0
    with pytest.raises(UserError, match="3 numbers; expected 2"):
        agent.play(asked="second", hidden=[1, 2, 0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--asked", "all"], "--asked: 'all' can't be asked"),
        (["--asked", "both", "--hidden", "1 x"], "--hidden: 'x' is no number"),
        (["--asked", "both", "--hidden", "1 9"], "--asked and --hidden: hidden is"),
        (["--digits", "1,2,3"], "is posed by --asked and --hidden"),
        (["--hidden", "1 2"], "--hidden: "),
    ],
)
def test_flags_that_cannot_be_posed(policy, capfd, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    refusal(capfd, "explain", [policy.folder, "--task", POSED, *flags], [message])


@pytest.fixture(scope="module")
def app(policy):
    return build_app(Agents({"posed": policy}), ["localhost"])


def test_requests(app):
    told = http(app, "GET", "/api/models")[1]
    assert told["posed_by"] == [
        {"name": "asked", "kind": "text", "length": None},
        {"name": "hidden", "kind": "numbers", "length": 2},
    ]
    for asked, target in (
        ({"asked": "both", "hidden": [2, 1]}, 21),
        ({"asked": "first"}, 0),
        (http(app, "GET", "/api/example")[1], None),
        (told["example"], None),
    ):
        status, answer = http(app, "POST", "/api/play", asked)
        assert status == 200, answer
        assert target in (None, answer["target"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hidden": [1, 2]}, "'asked' is missing"),
        ({"asked": "both", "hidden": [1, 2, 0]}, "hidden: 3 numbers; expected 2"),
        ({"asked": "both", "hidden": [1, 9]}, "asked and hidden: hidden is"),
        ({"asked": "both", "hidden": "1 2"}, "hidden: "),
        ({"asked": "both", "seed": 3}, "seed: unknown key; a problem has stage, asked, hidden"),
    ],
)
def test_requests_that_cannot_be_posed(app, asked, message):
    status, answer = http(app, "POST", "/api/play", asked)
    assert status == 422 and answer["detail"].startswith(message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"posed_by": "floor"}, "posed_by is 'floor'; expected a tuple of names"),
        ({"posed_by": ()}, r"posed_by is \(\); expected a tuple of names"),
        ({"problem_columns": ["a"]}, r"problem_columns is \['a'\]; expected a tuple"),
        ({"posed_by": ("a", "b"), "problem_columns": ("a",)}, "they are the same"),
    ],
)
def test_a_task_that_does_not_say_what_poses_it_is_refused(members, message):
    given = type("Odd", (PosedPeekTask,), {"name": "odd", **members})
    assert issubclass(given, Task)
    with pytest.raises(UserError, match=message):
        register_task(given)
