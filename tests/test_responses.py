"""Tools that answer: what is observed of it, in each environment, batch, network and record."""

import json
import shutil
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from answering import PeekTask
from gymnasium.utils import seeding
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from trained import run_modules

from toolagent.envs import env_id, register_task, register_with_rllib
from toolagent.envs.single import ToolEnv
from toolagent.envs.vector import ToolVectorEnv
from toolagent.models.base import ResponseInput
from toolagent.models.registry import network_class
from toolagent.models.rl_module import NetworkModule
from toolagent.rollouts.play import Intervention, PlayDetails, play
from toolagent.rollouts.recorder import EpisodeRecorder, Recording
from toolagent.rollouts.records import read_episodes
from toolagent.rollouts.stock_recorder import batch_of_episodes, finished
from toolagent.tasks import get_task

pytestmark = pytest.mark.usefixtures("one_thread")

register_task(PeekTask)
PEEK = "answering:PeekTask"
TASK = PeekTask()
WRITE_1, LOOK, SAY, NONE, START = 1, 3, 4, 5, 6
NETWORKS = (
    "stage_gru",
    "encoder_decoder",
    "answer_attention",
    "recurrent",
    "toolagent.examples.own_network:Transformer",
)


def make_network(name, seed=0, task=TASK):
    torch.manual_seed(seed)
    network = network_class(name)(task.interface)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # more, and one token has it all
    return network


# Environments ----------------------------------------------------------------------------------


def test_an_answer_is_observed_at_the_next_step_and_only_there():
    env = ToolEnv(PEEK, stage=1)
    observation, _ = env.reset(seed=3)
    hidden = TASK.sample(seeding.np_random(3)[0], np.array([1], np.int8)).digits[0].tolist()
    assert observation["response"].tolist() == [NONE, NONE]
    seen = []
    for action in (LOOK, WRITE_1, LOOK, SAY):
        observation, *_ = env.step(action)
        assert env.observation_space.contains(observation)
        assert observation["response"].dtype == np.int64
        seen.append(observation["response"].tolist())
    assert seen == [hidden, [NONE, NONE], hidden, [NONE, NONE]]


def test_an_episode_that_begins_has_no_answer_of_the_one_before():
    """At autoreset, with a `reset_mask` and at a whole reset; the others keep theirs."""
    envs = ToolVectorEnv(3, PEEK)
    envs.reset(seed=0)
    envs.step(np.array([LOOK, SAY, LOOK]))
    observations, *_ = envs.step(np.array([LOOK, LOOK, LOOK]))  # ignored in the row that restarts
    responses = observations["response"]
    assert (responses != NONE).all(1).tolist() == [True, False, True]
    assert observations["previous_token"][1] == START
    kept = responses.copy()
    observations, _ = envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert observations["response"].tolist() == [[NONE] * 2, [NONE] * 2, kept[2].tolist()]
    assert np.array_equal(responses, kept)  # an earlier observation stays as it was
    envs.step(np.full(3, LOOK))
    assert (envs.reset()[0]["response"] == NONE).all()


def test_a_task_may_answer_with_the_same_array_again():
    """It may even be one that can't be written: nobody writes into it."""

    class Constant(PeekTask):
        name = "constant"

        def step(self, problems, registers, actions):
            transition = super().step(problems, registers, actions)
            fixed = np.broadcast_to(np.array([2, 1]), (len(actions), 2))
            return type(transition)(**{**vars(transition), "response": fixed})

    task = Constant()
    problems = task.sample(np.random.default_rng(0), np.zeros(4, np.int8))
    batch = play(make_network("stage_gru"), task, problems, torch.Generator().manual_seed(0))
    happened = np.arange(7) < batch.lengths[:, None]
    assert (batch.response[happened] == [2, 1]).all() and (batch.response[~happened] == NONE).all()


# The batched rollout ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_played_episodes_are_those_of_one_env_at_a_time(name):
    network, size = make_network(name), 60
    stages = np.arange(size) % 2
    problems = type(TASK.sample(np.random.default_rng(0), np.zeros(1, np.int8))).concatenate(
        [TASK.sample(seeding.np_random(seed)[0], stages[[seed]]) for seed in range(size)]
    )
    batch = play(network, TASK, problems, torch.Generator().manual_seed(1))
    for row in range(size):
        env, done = ToolEnv(PEEK), False
        observation, _ = env.reset(seed=row, options={"stage": stages[row]})
        with torch.no_grad():
            encoding, hidden = network.read(
                torch.tensor(observation["context"])[None], torch.tensor([observation["stage"]])
            )
        for step in range(batch.lengths[row]):
            assert not done
            seen = [torch.tensor(observation[key]) for key in ("previous_token", "response")]
            with torch.no_grad():
                logits, _, hidden = network.unroll(
                    seen[0].view(1, 1), encoding, hidden, seen[1].view(1, 1, 2)
                )
            action = batch.actions[row, step]
            log_probability = torch.log_softmax(logits[0, 0], 0)[int(action)]
            assert batch.log_probabilities[row, step] == pytest.approx(
                float(log_probability), abs=1e-4
            )
            observation, reward, terminated, truncated, info = env.step(action)
            assert batch.response[row, step].tolist() == observation["response"].tolist()
            assert batch.rewards[row, step] == reward
            done = terminated or truncated
        assert done and info["solved"] == batch.solved[row]
        assert (batch.response[row, batch.lengths[row] :] == NONE).all()
    looked = (batch.actions == LOOK) & (np.arange(7) < batch.lengths[:, None])
    assert batch.response.dtype == np.int8
    assert looked.any() and np.array_equal((batch.response != NONE).all(2), looked)


class Notes(Intervention):
    """Changes nothing; notes the states by episode and step."""

    def __init__(self):
        self.states = {}

    def hidden(self, hidden, step, rows):
        self.states |= {(row, step): hidden[i] for i, row in enumerate(rows.tolist())}
        return hidden


class Replaced(Notes):
    """Every third episode is told 2 2 where tools answer, and every fourth starts step 2 with a
    state of its own number."""

    def hidden(self, hidden, step, rows):
        changed = hidden.clone()
        if step == 2:
            changed[rows % 4 == 0] = (rows[rows % 4 == 0] / 100).unsqueeze(1)
        return super().hidden(changed, step, rows)

    def response(self, response, step, rows):
        lied = (rows % 3 == 0).unsqueeze(1) & (response != NONE)
        return torch.where(lied, torch.full_like(response, 2), response)


def test_an_intervention_changes_what_is_observed_and_remembered_and_not_the_machine():
    network, size = make_network("stage_gru"), 200
    problems = TASK.sample(np.random.default_rng(0), np.arange(size) % 2)

    def played(intervention):
        generator = torch.Generator().manual_seed(1)
        return play(network, TASK, problems, generator, intervention=intervention)

    untouched, noted = played(None), played(Notes())
    assert all(np.array_equal(column, getattr(noted, name)) for name, column in untouched.columns())
    intervention = Replaced()
    batch = played(intervention)
    asked = (batch.actions == LOOK) & (np.arange(7) < batch.lengths[:, None])
    asked[np.arange(size), batch.lengths - 1] = False  # nobody observes the answer to the last one
    for row, step in np.argwhere(asked):
        told = [2, 2] if row % 3 == 0 else problems.digits[row].tolist()
        assert batch.response[row, step].tolist() == told
    assert asked[::3].any()
    lived = {row: state for (row, step), state in intervention.states.items() if step == 2}
    assert len(lived) > 50 and all(
        bool((lived[row] == np.float32(row / 100)).all()) for row in lived if row % 4 == 0
    )
    registers = TASK.start(problems)
    for step in range(7):  # the machine by itself, on the same actions
        transition = TASK.step(problems, registers, batch.actions[:, step])
        registers = transition.registers
        now = batch.lengths == step + 1
        assert np.array_equal(transition.solved[now], batch.solved[now])
    kept = np.arange(size) % 4 != 0  # the network by itself, on what was observed
    logits, _ = network.unroll_episodes(
        *(torch.from_numpy(getattr(batch, name)) for name in ("context", "stage", "actions")),
        torch.from_numpy(batch.lengths),
        torch.from_numpy(batch.response),
    )
    chosen = torch.from_numpy(batch.actions).long().unsqueeze(2)
    found = torch.log_softmax(logits, -1).gather(2, chosen)[..., 0].detach().numpy()
    happened = np.arange(7) < batch.lengths[:, None]
    close = np.isclose(found, batch.log_probabilities, atol=1e-4) | ~happened
    assert close[kept].all() and not close[~kept][:, 2:].all()


# Networks --------------------------------------------------------------------------------------


def test_a_response_adds_a_vector_for_each_token_and_place_but_none_for_pad():
    torch.manual_seed(0)
    layer = ResponseInput(TASK.interface, 3)
    responses = torch.randint(len(TASK.vocabulary), (4, 5, 2))
    expected = torch.zeros(4, 5, 3)
    for row, step, place in np.ndindex(4, 5, 2):
        token = int(responses[row, step, place])
        if token != NONE:
            expected[row, step] += layer.vectors[place, token]
    torch.testing.assert_close(layer(responses.to(torch.int8)), expected)


def test_a_network_of_a_task_whose_tools_answer_nothing_has_no_weights_for_it():
    interface = TASK.interface._replace(response_length=0)
    assert not list(ResponseInput(interface, 3).parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_answer_changes_what_follows_it_and_nothing_before(name):
    network = make_network(name)
    problems = TASK.sample(np.random.default_rng(0), np.ones(1, np.int8))
    actions = torch.tensor([[LOOK, WRITE_1, WRITE_1, SAY]])
    responses = torch.full((2, 4, 2), NONE)
    responses[0, 1], responses[1, 1] = torch.tensor([0, 1]), torch.tensor([0, 2])
    with torch.no_grad():
        logits, _ = network.unroll_episodes(
            torch.from_numpy(problems.context).repeat(2, 1),
            torch.from_numpy(problems.stage).repeat(2),
            actions.repeat(2, 1),
            torch.tensor([4, 4]),
            responses,
        )
    differs = (logits[0] - logits[1]).abs().amax(-1) > 1e-4
    assert differs.tolist() == [False, False, True, True]


# Records ---------------------------------------------------------------------------------------


def test_recorded_answers_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    problems = TASK.sample(rng, rng.integers(0, 2, 80))
    details = PlayDetails.empty(80, 7)
    generator = torch.Generator().manual_seed(0)
    batch = play(make_network("stage_gru"), TASK, problems, generator, observer=details)
    recorder = EpisodeRecorder(Recording(str(tmp_path), "run-1"), TASK)
    recorder.add(batch, details, 1)
    recorder.flush()
    episodes = read_episodes(str(tmp_path), PEEK)
    for column in ("stage", "context", "actions", "lengths", "rewards", "response", "solved"):
        ours, recorded = getattr(batch, column), getattr(episodes, column)
        assert recorded.dtype == ours.dtype and np.array_equal(recorded, ours), column
    assert (batch.response != NONE).any()


@pytest.mark.parametrize("vectorize_mode", ["vector_entry_point", "sync"])
def test_rllibs_own_runner_observes_and_records_the_answers(vectorize_mode):
    register_with_rllib()
    config = (
        PPOConfig()
        .environment(env_id(PEEK), env_config={"stage": 1, "seed": 0})
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=3, gym_env_vectorize_mode=vectorize_mode
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=NetworkModule,
                model_config={"task": PEEK, "embedding_size": 8, "max_seq_len": 8},
            )
        )
    )
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    try:
        under_way, episodes = {}, []
        for _ in range(4):  # fragments cut episodes in pieces
            episodes += finished(runner.sample(num_timesteps=23), under_way)
        batch, details = batch_of_episodes(episodes, TASK, runner.module.network)
    finally:
        runner.stop()
    assert len(batch) > 10
    looked = (batch.actions == LOOK) & (np.arange(7) < batch.lengths[:, None])
    assert looked.any() and np.array_equal((batch.response != NONE).all(2), looked)
    for row in range(len(batch)):  # the hidden digits of an episode are always the same
        assert len({tuple(answer) for answer in batch.response[row][looked[row]].tolist()}) <= 1
    probabilities = torch.log_softmax(
        runner.module.network.unroll_episodes(
            *(torch.from_numpy(getattr(batch, name)) for name in ("context", "stage", "actions")),
            torch.from_numpy(batch.lengths),
            torch.from_numpy(batch.response),
        )[0],
        -1,
    )
    happened = np.arange(7) < batch.lengths[:, None]
    found = probabilities.gather(2, torch.from_numpy(batch.actions).long().unsqueeze(2))[..., 0]
    np.testing.assert_allclose(
        found.detach().numpy()[happened], batch.log_probabilities[happened], atol=1e-4
    )
    assert np.isfinite(details.values).all()


def test_of_rllibs_episodes_the_answer_is_recorded_that_ended_them():
    """Here the token that answers ends no episode: the last token is `=`, of an answer or not."""
    task = get_task("toolcall")
    env, episodes = ToolEnv("toolcall", limit_terminates=True), []
    for program in ("ANS 3 1 =", "ADD 3 , 1 = = =", "ANS NEG 4 =", "= = = = ANS 1 2"):
        observation, info = env.reset(options={"expression": "4"})
        episode = SingleAgentEpisode(observations=[observation], infos=[info])
        for token in program.split():
            action = task.vocabulary.token(token)
            observation, reward, over, cut, info = env.step(action)
            episode.add_env_step(
                observation,
                action,
                reward,
                infos=info,
                terminated=over,
                truncated=cut,
                extra_model_outputs={"action_logp": 0.0},
            )
        assert over
        episode.to_numpy()  # as a runner hands it out
        episodes.append([episode])
    network = make_network("stage_gru", task=task)
    _, details = batch_of_episodes(episodes, task, network)
    assert details.answered.tolist() == [True, False, True, False]
    assert details.answers.tolist() == [31, 0, -4, 0]


def test_gymnasium_finds_nothing_to_complain_about():
    gym.utils.env_checker.check_env(gym.make(env_id(PEEK)).unwrapped, skip_render_check=True)


# Learned ---------------------------------------------------------------------------------------

CONFIG = """\
task: answering:PeekTask
curriculum:
  levels:
    - {stage: 0, advance_at_accuracy: 0.95}
    - {stage: 1, advance_at_accuracy: 0.95}
  earlier_stage_share: 0.3
training:
  explorer_share: 0.2
  explore_until_solved: 0.9
  replay_episodes: 128
  replay_coeff: 0.1
run: {dashboard: false, stop_time_s: 120}
"""
CLONING = """\
task: answering:PeekTask
algorithm: BC
curriculum:
  levels:
    - {stage: 0, advance_at_accuracy: 0.95}
    - {stage: 1, advance_at_accuracy: 0.95}
run: {dashboard: false, stop_iterations: 40}
offline_data: {input_: episodes}
training: {episodes_per_update: 512, updates_per_iteration: 20, lr: 3.0e-3}
"""


@pytest.mark.slow  # learned in the full tier: test_learning; recorded: test_posing
def test_an_agent_learns_to_ask_and_to_remember_and_another_from_its_records(tmp_path):
    """Without the response the best that can be had is 1/3 in stage 0 and 1/9 in stage 1."""
    shutil.copy(sys.modules["answering"].__file__, tmp_path)
    (tmp_path / "learn.yaml").write_text(CONFIG)
    (tmp_path / "clone.yaml").write_text(CLONING)
    run = ["-m", "toolagent.run", "--config"]
    for options in (
        ["learn.yaml", "--num-env-runners", "2", "--record-episodes", "episodes"],
        ["clone.yaml"],
    ):
        (done,) = run_modules([*run, *options, "--output-dir", options[0][:5]], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / options[0][:5] / "summary.json").read_text())
        assert [row["accuracy"] > 0.95 for row in summary["stages"]] == [True, True], options
