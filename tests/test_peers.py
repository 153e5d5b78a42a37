"""`benchmark --peers`: learners of other libraries on our episodes, certified as our agents are."""

import itertools
from types import SimpleNamespace
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

from toolagent.benchmark.peers import PEERS, table, training
from toolagent.benchmark.peers.base import Peer, PeerEnvironment, PeerNetwork
from toolagent.errors import UserError
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, MUL, SUB

PLANS = {0: (MUL, ADD, ANS), 1: (MUL, ADD, SUB, ANS)}
UPDATE = training.MEASURE_EVERY_ENV_STEPS


class Planner(Peer):
    """Knows the plan of each stage that it was trained on, and none for stage 2."""

    SETTINGS: ClassVar = {"num_envs": 4}
    state_size = 1  # the number of the step

    def __init__(self, environment, settings, seed):
        self.environment, self.learned = environment, set()

    def update(self):
        self.learned.add(self.environment.vector_env.stage)
        return UPDATE

    def policy(self, observation, state):
        task = self.environment.task
        width = task.context_length * task.interface.context_vocabulary
        stages = observation[:, width : width + task.num_stages].argmax(1).tolist()
        tokens = [
            PLANS[stage][int(step)] if stage in PLANS and stage in self.learned else ANS
            for stage, step in zip(stages, state[:, 0].tolist(), strict=True)
        ]
        logits = torch.nn.functional.one_hot(
            torch.tensor(tokens), task.vocabulary.num_actions
        ).float()
        return logits, state + 1


def test_a_peer_is_moved_on_certified_and_stopped_as_our_own_agent_is(monkeypatch):
    monkeypatch.setattr(training, "peer_class", lambda name: Planner)
    monkeypatch.setattr(training, "_TRIAL_S", 0.0)
    ticks = itertools.count()  # a second for each look at the clock
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    row = training.train_peer("planner", seconds=20)
    first = [stage["first_solved_env_steps"] for stage in row["stages"]]
    assert first == [UPDATE, 2 * UPDATE, None]
    assert [stage["solved"] for stage in row["stages"]][:2] == [1_000, 10_000]
    assert row["stages"][2]["problems"] == 100_000 and not row["solved"]
    assert row["env_steps"] > 3 * UPDATE and row["wall_time_s"] >= 20


def test_observations_are_those_of_our_environment_and_an_end_costs_no_step():
    environment = PeerEnvironment("calculator", 6, seed=3, earlier_stage_share=0.0)
    space = environment.vector_env.single_observation_space
    seen = []
    step, reset = environment.vector_env.step, environment.vector_env.reset
    environment.vector_env.step = lambda actions: kept(seen, step(actions))
    environment.vector_env.reset = lambda **options: kept(seen, reset(**options))
    flat, rng, ends = environment.reset(), np.random.default_rng(0), 0
    for _ in range(30):
        for number, row in enumerate(flat.numpy()):
            one = {name: column[number] for name, column in seen[-1].items()}
            assert np.array_equal(gym.spaces.flatten(space, one), row)
        flat, _, ended = environment.step(rng.choice([MUL, ADD, ANS], 6))
        assert (seen[-1]["previous_token"][ended] == environment.task.vocabulary.start_token).all()
        ends += int(ended.sum())
    assert ends > 30


def kept(seen, result):
    seen.append(result[0])
    return result


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    missing = {"other": ("other", "no_such_package", "Other")}
    monkeypatch.setattr(table, "PEERS", missing)
    with pytest.raises(UserError, match=r"no_such_package: not installed; .*\bpeers\b"):
        table.check_installed()


# The libraries themselves ------------------------------------------------------------------------

TINY = {
    "sb3_recurrent_ppo": {"num_envs": 8, "n_steps": 8, "batch_size": 32, "n_epochs": 1},
    "torchrl_ppo": {"num_envs": 8, "steps": 8, "batch_size": 32, "epochs": 1},
    "skrl_ppo_rnn": {"num_envs": 8, "rollouts": 8, "mini_batches": 2, "learning_epochs": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_and_its_policy_is_what_it_plays_by(name):
    pytest.importorskip(PEERS[name][1], reason="needs the extra dev")
    torch.manual_seed(0)
    kind = training.peer_class(name)
    environment = PeerEnvironment("calculator", 8, seed=0, earlier_stage_share=0.0)
    peer = kind(environment, kind.SETTINGS | TINY[name], 0)
    network = PeerNetwork(peer, environment.task.interface)
    task = get_task("calculator")
    problem = task.problems(2, 0, 50)
    known = torch.from_numpy(problem.context), torch.from_numpy(problem.stage)
    before = first_logits(network, *known)
    assert peer.update() == 64
    after = first_logits(network, *known)
    assert after.shape == (50, task.vocabulary.num_actions)
    assert torch.isfinite(after).all() and not torch.equal(before, after)


@torch.no_grad()
def first_logits(network, context, stage):
    encoding, state = network.read(context, stage)
    token = torch.full((len(stage),), network.start_token)
    return network.step(None, token, encoding, state)[0].clone()
